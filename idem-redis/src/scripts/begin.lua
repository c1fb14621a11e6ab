-- Claims the key if it is free. Otherwise returns what prevents that: a claim, and how many milliseconds are left to its key; or
-- a record, but only its head if its fingerprint is another.
local claim, expiry, fingerprint = ARGV[1], ARGV[2], ARGV[3]
local found = look()
if not found then
    redis.call('SET', KEYS[1], claim, 'PX', expiry)
    return 1
end
if found == claim then
    -- A repetition: a reply was lost.
    redis.call('PEXPIRE', KEYS[1], expiry)
    return 1
end
if string.sub(found, 1, 2) ~= '\1R' then
    local left = redis.call('PTTL', KEYS[1])
    if #found > 26 and left >= 0 and left < struct.unpack('>I8', found, 19) then
        -- Its lease has expired. A replica that was the primary once may lack a renewal, or the record. So this writes
        -- something that changes nothing, which a replica refuses.
        local written = redis.pcall('PEXPIRE', KEYS[1], math.max(1, left))
        if type(written) == 'table' and string.find(written.err, 'READONLY', 1, true) then return written end
    end
    return { found, left }
end
if string.sub(found, 19, 50) == fingerprint then return redis.call('GET', KEYS[1]) end
return found
