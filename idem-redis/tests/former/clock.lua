-- The one clock that leases and records are judged by: the server's. Microseconds fit a Lua number until the year 2255.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

-- After how many milliseconds the server may reclaim what lives for so many microseconds.
local function milliseconds(lives)
    return math.max(1, math.ceil(lives / 1000))
end
