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
if string.sub(found, 1, 2) ~= '\1R' then return { found, redis.call('PTTL', KEYS[1]) } end
if string.sub(found, 19, 50) == fingerprint then return redis.call('GET', KEYS[1]) end
return found
