-- One value, as `wire.rs` describes it. A value that does not pass `decode` is reported, and never overwritten.
local UNREADABLE, DONE, IN_FLIGHT, ABANDONED, RECORD, LOST, ABSENT = 0, 1, 2, 3, 4, 5, 6
local VERSION, CLAIM, KEPT = '\1', 'C', 'R'
local HEAD, REST, CLAIM_LENGTH = 26, 35, 66

-- Four bytes against damage. They bind the value to its key, so that a copy under another key is not read.
local function check(covered)
    return string.sub(redis.sha1hex(KEYS[1] .. covered), 1, 8)
end

local function encode(state, owner, deadline, rest)
    local head = VERSION .. state .. owner .. struct.pack('>I8', deadline)
    -- The bytes of a record carry a checksum of their own.
    return head .. check(state == CLAIM and head .. rest or head) .. rest
end

-- The first `CLAIM_LENGTH` + 1 bytes of a value are enough.
local function decode(value)
    if #value < REST - 1 or string.sub(value, 1, 1) ~= VERSION then return nil end
    local state, covered = string.sub(value, 2, 2), string.sub(value, 1, HEAD)
    if state == CLAIM then
        if #value ~= CLAIM_LENGTH then return nil end
        covered = covered .. string.sub(value, REST)
    elseif state ~= KEPT then
        return nil
    end
    if check(covered) ~= string.sub(value, HEAD + 1, REST - 1) then return nil end
    return { state = state, owner = string.sub(value, 3, 18), deadline = (struct.unpack('>I8', value, 19)) }
end

-- The head of what stands under the key, and not all of a record. `nil` where nothing does.
local function look()
    local value = redis.call('GETRANGE', KEYS[1], 0, CLAIM_LENGTH)
    if value == '' then return nil, ABSENT end
    local found = decode(value)
    if not found then return nil, UNREADABLE end
    found.rest = string.sub(value, REST)
    return found
end

-- A hint to those who wait. It may fail, for want of the right to publish, and nothing depends on it.
local function tell(channel)
    redis.pcall('PUBLISH', channel, '')
end
