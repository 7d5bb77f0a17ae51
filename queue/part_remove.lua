-- Takes a finished message out of the history. Returns how much of its budget that gives back (see part_end.lua)
-- and, when it was a dead letter, its charge.

local function forget_dead(id, charge)
    if redis.call('HDEL', tag .. ':u', id) == 0 then
        return 0
    end
    redis.call('ZREM', tag .. ':z', id)
    redis.call('UNLINK', tag .. ':b:' .. id)
    return charge
end

local function remove_message(id, count, suffix, charge)
    local bytes, keys = 600, {tag .. ':m:' .. id}
    for n = 0, count - 1 do
        local key = tag .. ':q:' .. id .. '/' .. n .. suffix
        bytes = bytes + 200 + redis.call('STRLEN', key)
        keys[#keys + 1] = key
        if #keys == 1000 then
            redis.call('UNLINK', unpack(keys))
            keys = {}
        end
    end
    if #keys > 0 then
        redis.call('UNLINK', unpack(keys))
    end
    return bytes, forget_dead(id, charge)
end
