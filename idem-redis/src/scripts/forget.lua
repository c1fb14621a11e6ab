-- Removes a value that begins with `start`: a record, or a claim if less than `left` milliseconds are left to its key.
local start, channel, left = ARGV[1], ARGV[2], ARGV[3]
local found = redis.call('GETRANGE', KEYS[1], 0, #start - 1)
if found == '' then return false end
if found ~= start then return found end
if left and redis.call('PTTL', KEYS[1]) >= tonumber(left) then return 0 end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', channel, '')
return 1
