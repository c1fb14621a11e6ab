-- Replaces the claim by its record. With `small`, also where the server is full: then the record is a tombstone.
local owner, lives, channel, record, small = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5] == '1'
local time = now()
local found, why = look()
if not found then return { why } end
if found.owner ~= owner then return { LOST } end
if found.state == KEPT then
    -- Repeated. A write all the same, which changes nothing: WAIT waits for the last write of its connection.
    redis.call('PEXPIRE', KEYS[1], math.max(1, redis.call('PTTL', KEYS[1])))
    return { DONE }
end
local keep = milliseconds(lives)
if small then
    redis.call('PEXPIRE', KEYS[1], keep)
end
redis.call('SET', KEYS[1], encode(KEPT, owner, time + lives, record), 'PX', keep)
tell(channel)
return { DONE }
