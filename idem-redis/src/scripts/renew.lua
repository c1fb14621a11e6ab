-- Gives the claim its whole life again, as `value`. With `left`, takes it over, if less than that is left of its life.
local claim, value, lives, left = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('GET', KEYS[1])
if found ~= claim then return found end
if left and redis.call('PTTL', KEYS[1]) >= tonumber(left) then return 0 end
-- A full server refuses SET as the first write of a script, but not PEXPIRE. A claim that lives takes no more room.
redis.call('PEXPIRE', KEYS[1], lives)
if value ~= claim then redis.call('SET', KEYS[1], value, 'PX', lives) end
return 1
