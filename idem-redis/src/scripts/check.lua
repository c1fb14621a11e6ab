-- Tries each command that the other scripts use, on a key that does not exist, and changes nothing. Returns the rights that the
-- user lacks, or whose commands the server does not know. The key is no KEYS, since another node of a cluster may have it.
local key, rights_to_keys = ARGV[1], ARGV[2]
local missing = {}
local function try(right, ...)
    local reply = redis.pcall(...)
    local why = type(reply) == 'table' and reply.err or ''
    -- As Redis 7.0 says it, and as later versions and Valkey do.
    if string.find(why, "can't run this command") or string.find(why, 'no permissions to run the')
        or string.find(why, 'Unknown .*command called') then
        missing[#missing + 1] = right
    elseif string.find(why, "can't access") or string.find(why, 'No permissions to access a key') then
        missing[1] = rights_to_keys
    end
end
try('+get', 'GET', key)
try('+getrange', 'GETRANGE', key, 0, 1)
try('+pttl', 'PTTL', key)
try('+time', 'TIME')
try('+set', 'SET', key, '', 'XX')
try('+pexpire', 'PEXPIRE', key, 1)
try('+del', 'DEL', key)
return missing
