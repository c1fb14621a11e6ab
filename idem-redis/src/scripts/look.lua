-- Returns the value of the key, but of a record only its head, and `false` if there is none.
local function look()
    local start = redis.call('GETRANGE', KEYS[1], 0, 51)
    if string.sub(start, 1, 2) ~= '\1R' then return redis.call('GET', KEYS[1]) end
    if #start < 52 then return start end
    local summary = string.byte(start, 51) * 256 + string.byte(start, 52)
    return redis.call('GETRANGE', KEYS[1], 0, 59 + summary)
end
