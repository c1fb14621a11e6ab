-- Extends the lease of the claim.
local claim, expiry = ARGV[1], ARGV[2]
local found = redis.call('GET', KEYS[1])
if found ~= claim then return found end
redis.call('PEXPIRE', KEYS[1], expiry)
return 1
