-- Removes the claim.
local claim, channel = ARGV[1], ARGV[2]
local found = redis.call('GET', KEYS[1])
if found ~= claim then return found end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', channel, '')
return 1
