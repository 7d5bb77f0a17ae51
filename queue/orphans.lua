-- Walks the open messages, some at a time, and puts back what does not stand where its state says. Scripts are
-- atomic, so nothing of this happens by itself: somebody deleted keys, or a script was killed halfway.
--
-- KEYS: shard tag. ARGV: lock owner (of sweep.lua), lease_ms, most messages, most batches.
-- Reply: {what was put back, batches and messages without a record}; nil when another handle sweeps.
--
-- Where the walk is stands in :walk: "N score seen id" (go on with batch N of the message, 0 for the one
-- after it; seen: it had open batches before N), or after the end the time when to begin anew.
local tag = KEYS[1]
if redis.call('GET', tag .. ':lock') ~= ARGV[1] then
    return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease_ms, most, budget = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local mended, missing, deep = 0, 0, 3
local PAUSE_MS, NEAR, FAR = 10000, 2000, 100000
-- part: front
-- part: end
-- part: walk

local place_of = redis.call('GET', tag .. ':walk') or '0'
local first, score, seen, from = string.match(place_of, '^(%d+) (%S+) (%d) (.+)$')
local rank = 0
if from then
    first = tonumber(first)
    rank = rank_after(tag .. ':x', score, from)
    if first > 0 and tonumber(redis.call('ZSCORE', tag .. ':x', from) or 0) == tonumber(score) then
        rank = rank - 1
    else
        first, seen = 0, '0'
    end
elseif tonumber(place_of) > now then
    return {0, 0}
else
    first, seen = 0, '0'
end

-- Whether a list holds the entry: nil when that cannot be said in a few steps.
local function holds(key, entry)
    if redis.call('LPOS', key, entry, 'MAXLEN', NEAR) then
        return true
    end
    local length = redis.call('LLEN', key)
    if length <= NEAR then
        return false
    elseif deep == 0 then
        return nil
    end
    deep = deep - 1
    if redis.call('LPOS', key, entry, 'MAXLEN', FAR) then
        return true
    end
    return length > FAR and nil or false
end

local lists = {}
local function look_at_list(pair, client)
    local key = tag .. ':r:' .. pair .. '|' .. client
    local list = lists[key]
    if not list then
        list = {key = key, head = redis.call('LINDEX', key, 0), tail = redis.call('LINDEX', key, -1),
            length = redis.call('LLEN', key)}
        lists[key] = list
        if list.head and not redis.call('LPOS', tag .. ':c:' .. pair, client) then
            redis.call('RPUSH', tag .. ':c:' .. pair, client)
            mended = mended + 1
        end
    end
    return list
end

-- Looking through a long list costs its length. What must stand before its head or behind its tail is not in it;
-- of what must be in the middle one batch a step is looked for, and more once one was missing. The others are
-- found when the list has got on to younger ones.
local samples = 1
local function check_ready(entry, pair, client)
    local list = look_at_list(pair, client)
    local short = list.length <= 200
    local outside = list.head and (older(entry, list.head) or older(list.tail, entry))
    if not short and not outside then
        if samples == 0 then
            return
        end
        samples = samples - 1
    end
    if not list.head then
        redis.call('RPUSH', list.key, entry)
        if not redis.call('LPOS', tag .. ':c:' .. pair, client) then
            redis.call('RPUSH', tag .. ':c:' .. pair, client)
        end
    elseif holds(list.key, entry) == false then
        place(pair, client, {entry}, 'RPUSH')
        if not short and not outside then
            samples, deep = samples + 20, deep + 20
        end
    else
        return
    end
    lists[list.key] = nil
    mended = mended + 1
end

local function check_batch(entry, state, due, pair, client)
    if state == 'R' then
        check_ready(entry, pair, client)
    elseif state == 'E' then
        if holds(tag .. ':y:' .. pair, entry) == false then
            redis.call('RPUSH', tag .. ':y:' .. pair, entry)
            redis.call('HSET', tag .. ':g', '!' .. pair, '1')
            mended = mended + 1
        end
    elseif state == 'W' then
        mended = mended + redis.call('ZADD', tag .. ':d:' .. pair, 'NX', due, entry)
    elseif state == 'H' then
        mended = mended + redis.call('ZADD', tag .. ':h:' .. pair, 'NX', now, entry)
    end
end

-- A lease and its end come and go together. Without its end it would never end; its holder gets time to speak.
local function check_lease(entry, lease, lease_end)
    if lease and not lease_end then
        redis.call('ZADD', tag .. ':l', now + lease_ms, entry)
        mended = mended + 1
    elseif lease_end and not lease then
        redis.call('ZREM', tag .. ':l', entry)
        mended = mended + 1
    end
    return lease
end

-- Some batches of a message from `start` on. Returns how many are open.
local function check_batches(id, suffix, start, stop)
    local entries, open = {}, 0
    for n = start, stop do
        entries[#entries + 1] = id .. '/' .. n .. suffix
    end
    local leases = redis.call('HMGET', tag .. ':t', unpack(entries))
    local lease_ends = redis.call('ZMSCORE', tag .. ':l', unpack(entries))
    for i, entry in ipairs(entries) do
        local text = redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 400)
        local state, due, pair, client =
            string.match(text, '^(%a)%d%d%d%d%d%d%d(%d+) ([^|\n]*|[^|\n]*)|([^\n]*)\n')
        if not check_lease(entry, leases[i], lease_ends[i]) and state then
            check_batch(entry, state, due, pair, client)
        end
        if text == '' then
            missing = missing + 1
        end
        open = open + (state == 'D' and 0 or 1)
    end
    return open
end

-- The message's own sums, when all its batches were seen in one step.
local function check_message(id, count, charge, open)
    if open == 0 then
        message_ended(id, charge, redis.call('ZSCORE', tag .. ':z', id))
        if count > 1 then
            gone[#gone + 1] = tag .. ':o:' .. id
        end
        mended = mended + 1
    elseif count > 1 and tonumber(redis.call('GET', tag .. ':o:' .. id) or 0) ~= open then
        redis.call('SET', tag .. ':o:' .. id, open)
        mended = mended + 1
    end
end

local ids = redis.call('ZRANGE', tag .. ':x', rank, rank + most - 1, 'WITHSCORES')
local walk = #ids < 2 * most and string.format('%.0f', now + PAUSE_MS)
for i = 1, #ids, 2 do
    local id = ids[i]
    local count, suffix, charge = message_head(id)
    if not count then
        missing = missing + 1
    else
        local stop = math.min(count, first + budget) - 1
        local open = check_batches(id, suffix, first, stop)
        budget = budget - (stop - first + 1)
        if stop + 1 < count then
            walk = (stop + 1) .. ' ' .. ids[i + 1] .. ' ' .. ((open > 0 or seen == '1') and 1 or 0) .. ' ' .. id
            break
        end
        if first == 0 then
            check_message(id, count, charge, open)
        elseif open == 0 and seen == '0' then
            check_message(id, count, charge, 0)
        end
    end
    first, seen = 0, '0'
    if i + 2 > #ids or budget <= 0 then
        walk = i + 2 > #ids and walk or '0 ' .. ids[i + 1] .. ' 0 ' .. id
        break
    end
end
write_ends()
redis.call('SET', tag .. ':walk', walk)

-- At the end of a round: where no entry is left none can be stale.
if not string.find(walk, ' ', 1, true) then
    for _, pair in ipairs(redis.call('SMEMBERS', tag .. ':p')) do
        if redis.call('LLEN', tag .. ':y:' .. pair) + redis.call('LLEN', tag .. ':c:' .. pair) == 0 then
            redis.call('HDEL', tag .. ':k', 'stale|' .. pair)
        end
    end
end
if mended > 0 then
    redis.call('PUBLISH', 'heave:ready', tag)
end
return {mended, missing}
