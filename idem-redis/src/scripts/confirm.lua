-- Writes something that changes nothing, if the value begins with `start`: WAIT waits for the last write of its connection.
local start = ARGV[1]
local found = redis.call('GETRANGE', KEYS[1], 0, #start - 1)
if found ~= start then return false end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    -- Someone removed its expiry.
    redis.call('SET', KEYS[1], redis.call('GET', KEYS[1]))
else
    redis.call('PEXPIRE', KEYS[1], math.max(1, left))
end
return 1
