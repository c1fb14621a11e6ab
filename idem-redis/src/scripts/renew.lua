-- Extends the lease of the claim.
local claim, expiry = ARGV[1], ARGV[2]
local found = look()
if found ~= claim then return found end
redis.call('PEXPIRE', KEYS[1], expiry)
return 1
