-- Replaces the claim by its record. With `small`, even if the server is full: then the record is a tombstone.
local claim, record, expiry, channel, small = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = look()
if found == claim then
    -- A full server refuses SET as the first write of a script, but not PEXPIRE.
    if small then redis.call('PEXPIRE', KEYS[1], expiry) end
    redis.call('SET', KEYS[1], record, 'PX', expiry)
    -- Only a hint to waiters. It fails without the right to publish.
    redis.pcall('PUBLISH', channel, '')
    return 1
end
-- Up to here all records of one owner are equal. A repetition changes nothing.
local RECORD_START = 50
if found and string.sub(found, 1, RECORD_START) == string.sub(record, 1, RECORD_START) then
    return 1
end
return found
