-- Claims the key, or says what stands in the way. A repetition by the same owner gets the claim again.
local owner, fingerprint, lease, lives = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = now()
local value = redis.call('GET', KEYS[1])
if value then
    local found = decode(value)
    if not found then return { UNREADABLE } end
    local rest = string.sub(value, REST)
    if found.state == KEPT then
        if time < found.deadline then return { RECORD, rest } end
    elseif found.owner ~= owner then
        if time < found.deadline or rest ~= fingerprint then return { IN_FLIGHT, rest } end
        return { ABANDONED, found.owner }
    end
end
redis.call('SET', KEYS[1], encode(CLAIM, owner, time + lease, fingerprint), 'PX', milliseconds(math.max(lives, lease)))
return { DONE }
