-- Tries each command that the other scripts use, on a key that does not exist, and changes nothing. Returns the rights that the
-- user lacks.
local missing = {}
local function try(right, ...)
    local reply = redis.pcall(...)
    local why = type(reply) == 'table' and reply.err
    if why and (string.find(why, 'NOPERM') or string.find(why, "can't run this command")) then
        missing[#missing + 1] = right
    end
end
try('+get', 'GET', KEYS[1])
try('+getrange', 'GETRANGE', KEYS[1], 0, 1)
try('+pttl', 'PTTL', KEYS[1])
try('+time', 'TIME')
try('+set', 'SET', KEYS[1], '', 'XX')
try('+pexpire', 'PEXPIRE', KEYS[1], 1)
try('+del', 'DEL', KEYS[1])
return missing
