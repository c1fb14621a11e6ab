-- Replaces an abandoned claim by that of its new owner, if less than `left` milliseconds are left to the key.
local previous, claim, expiry, left = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = look()
if found == claim then
    -- A repetition.
    redis.call('PEXPIRE', KEYS[1], expiry)
    return 1
end
if found ~= previous then return found end
if redis.call('PTTL', KEYS[1]) >= tonumber(left) then return 0 end
-- A full server refuses SET as the first write of a script, but not PEXPIRE. This claim takes hardly more room.
redis.call('PEXPIRE', KEYS[1], expiry)
redis.call('SET', KEYS[1], claim, 'PX', expiry)
return 1
