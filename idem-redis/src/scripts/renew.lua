-- Extends the lease of a claim, or takes it over from `former`, whose lease must have passed.
local owner, former, lease, lives = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = now()
local found, why = look()
if not found then return { why } end
if found.state ~= CLAIM then return { LOST } end
local heir = found.owner == former and found.deadline <= time
if found.owner ~= owner and not heir then return { LOST } end
local keep = milliseconds(math.max(lives, lease))
-- A full server refuses SET as the first write of a script, but not PEXPIRE. A claim that lives takes no more room.
redis.call('PEXPIRE', KEYS[1], keep)
redis.call('SET', KEYS[1], encode(CLAIM, owner, time + lease, found.rest), 'PX', keep)
return { DONE }
