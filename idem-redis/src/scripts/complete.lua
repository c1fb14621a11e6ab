-- Replaces the claim by its record. With `small`, also where the server is full: then the record is a tombstone.
local claim, record, lives, channel, small = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = redis.call('GET', KEYS[1])
if found == claim then
    if small then redis.call('PEXPIRE', KEYS[1], lives) end
    redis.call('SET', KEYS[1], record, 'PX', lives)
    -- A hint to those who wait. It may fail, for want of the right to publish, and nothing depends on it.
    redis.pcall('PUBLISH', channel, '')
    return 1
end
local HEAD = 34
if found and #found >= HEAD and string.sub(found, 1, HEAD) == string.sub(record, 1, HEAD) then
    -- Repeated. A write all the same, which changes nothing: WAIT waits for the last write of its connection.
    local left = redis.call('PTTL', KEYS[1])
    if left < 0 then
        -- Somebody has taken its end away, and it needs none.
        redis.call('SET', KEYS[1], found)
    else
        redis.call('PEXPIRE', KEYS[1], math.max(1, left))
    end
    return 1
end
return found
