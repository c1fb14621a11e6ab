-- Removes the claim of this owner.
local owner, channel = ARGV[1], ARGV[2]
local found, why = look()
if not found then return { why } end
if found.state ~= CLAIM or found.owner ~= owner then return { LOST } end
redis.call('DEL', KEYS[1])
tell(channel)
return { DONE }
