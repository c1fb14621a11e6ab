-- Removes the claim.
local claim, channel = ARGV[1], ARGV[2]
local found = look()
if found ~= claim then return found end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', channel, '')
return 1
