-- Removes a record, or a claim whose lease has passed.
local channel = ARGV[1]
local time = now()
local found, why = look()
if not found then return { why } end
if found.state == CLAIM and time < found.deadline then return { IN_FLIGHT } end
redis.call('DEL', KEYS[1])
tell(channel)
return { DONE }
