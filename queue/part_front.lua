-- Puts READY batches that were in their list before (retries, given back, set free) where their age puts them.

local function older(a, b)
    local slash = string.find(a, '/', 1, true)
    if string.sub(a, 1, slash) == string.sub(b, 1, slash) then
        return tonumber(string.match(a, '^%d+', slash + 1)) < tonumber(string.match(b, '^%d+', slash + 1))
    end
    return a < b
end

-- What sorts entries by age as plain text does, which costs a tenth of sorting by older().
local function age_of(entry)
    local id, number = string.match(entry, '^([^/]*/)(%d+)')
    return id .. string.format('%07d', number)
end

local function sort_by_age(entries)
    local ages, by_age = {}, {}
    for i = 1, #entries do
        local age = age_of(entries[i])
        ages[i], by_age[age] = age, entries[i]
    end
    table.sort(ages)
    for i = 1, #ages do
        entries[i] = by_age[ages[i]]
    end
end

-- Before all that are younger, as far as 500 entries from the front can tell; at the end when all are older.
-- `command` says where a client that had no work enters the rotation. Sorts `entries`.
local function place(pair, client, entries, command)
    local key = tag .. ':r:' .. pair .. '|' .. client
    local head = redis.call('LINDEX', key, 0)
    if #entries > 1 then
        sort_by_age(entries)
    end
    if not head then
        redis.call('RPUSH', key, unpack(entries))
        redis.call(command, tag .. ':c:' .. pair, client)
        return
    end
    local last = entries[#entries]
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
        for i = 1, keep do
            entries[#entries + 1] = got[i]
        end
        sort_by_age(entries)
    end
    for i = 1, #entries / 2 do
        entries[i], entries[#entries + 1 - i] = entries[#entries + 1 - i], entries[i]
    end
    redis.call('LPUSH', key, unpack(entries))
end
