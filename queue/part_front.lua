-- Puts READY batches that were in their list before (retries, given back, set free) where their age puts them.

local function older(a, b)
    local slash = string.find(a, '/', 1, true)
    if string.sub(a, 1, slash) == string.sub(b, 1, slash) then
        return tonumber(string.match(a, '^%d+', slash + 1)) < tonumber(string.match(b, '^%d+', slash + 1))
    end
    return a < b
end

-- Before all that are younger, as far as 500 entries from the front can tell; at the end when all are older.
-- `command` says where a client that had no work enters the rotation. Sorts `entries`.
local function place(pair, client, entries, command)
    local key = tag .. ':r:' .. pair .. '|' .. client
    local head = redis.call('LINDEX', key, 0)
    if #entries > 1 then
        table.sort(entries, older)
    end
    if not head then
        redis.call('RPUSH', key, unpack(entries))
        redis.call(command, tag .. ':c:' .. pair, client)
        return
    end
    local front, last = {}, entries[#entries]
    if older(head, last) then
        if older(redis.call('LINDEX', key, -1), entries[1]) then
            redis.call('RPUSH', key, unpack(entries))
            return
        end
        local got, keep = redis.call('LRANGE', key, 0, 499), 0
        for i = 1, #got do
            keep = older(got[i], last) and i or keep
        end
        redis.call('LTRIM', key, keep, -1)
        front = {unpack(got, 1, keep)}
    end
    local merged, f, e = {}, #front, #entries
    while f > 0 or e > 0 do
        if e == 0 or (f > 0 and older(entries[e], front[f])) then
            merged[#merged + 1], f = front[f], f - 1
        else
            merged[#merged + 1], e = entries[e], e - 1
        end
    end
    redis.call('LPUSH', key, unpack(merged))
end
