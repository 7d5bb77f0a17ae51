-- Moves what time has moved: due retries, ended leases, expired messages, dead letters and history past their
-- time or budget.
--
-- KEYS: shard tag. ARGV: lock owner, lock_ms, retention_ms, most items per step, until when (wall ms) leases may be
--   ended by this request, bytes of history (0: no limit), how long dead letters stay (ms), bytes of dead letters (0: no limit).
-- Reply: {ended leases, ended leases that were started, due batches, expired messages, removed messages,
--   batches whose record is missing, '1' when more is waiting, poison batches, removed dead letters}; nil when
--   another handle holds the lock.
local tag = KEYS[1]
if not redis.call('SET', tag .. ':lock', ARGV[1], 'NX', 'PX', ARGV[2])
    and redis.call('GET', tag .. ':lock') ~= ARGV[1] then
    return false
end
local retention, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local more, woke, orphans = '0', false, 0
-- part: front
-- part: walk
-- part: remove

-- The head of a stored batch: state, how often in a row its lease ended in STARTED, epoch (6 digits), due_ms
-- (14 digits), route up to the line's end.
local function head(entry)
    local text = redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 400)
    local state, starts, epoch, pair, client =
        string.match(text, '^(%a)(%d)(%d%d%d%d%d%d)%d+ ([^|\n]*|[^|\n]*)|([^\n]*)\n')
    if not state then
        orphans = orphans + 1
    end
    return state, pair, client, tonumber(starts), epoch
end

local routes, route_order = {}, {}
local function push(entry, pair, client)
    local route = pair .. '|' .. client
    local list = routes[route]
    if not list then
        list = {pair = pair, client = client}
        routes[route] = list
        route_order[#route_order + 1] = list
    end
    list[#list + 1] = entry
end

local function place_all()
    for _, list in ipairs(route_order) do
        place(list.pair, list.client, list, 'RPUSH')
        woke = true
    end
    routes, route_order = {}, {}
end

-- What nobody may send any more: served first, and through closed gates.
local function push_expired(entry, pair)
    redis.call('RPUSH', tag .. ':y:' .. pair, entry)
    redis.call('HSET', tag .. ':g', '!' .. pair, '1')
    woke = true
end

-- The record anew: HELD, with the reason in its place.
local function hold_poison(entry, pair, epoch)
    local text = redis.call('GET', tag .. ':q:' .. entry)
    local route_end = string.find(text, '\n', 1, true)
    local reason_end = string.find(text, '\n', route_end + 1, true)
    redis.call('SET', tag .. ':q:' .. entry, 'H3' .. epoch .. string.sub(text, 9, route_end)
        .. 'Three gateways in a row ended while they were sending this batch.' .. string.sub(text, reason_end))
    redis.call('ZADD', tag .. ':h:' .. pair, now, entry)
end

-- Ended leases: READY again, in front, unless the batch seems to end whoever sends it.
local ended = {}
if now <= tonumber(ARGV[5]) then
    ended = redis.call('ZRANGEBYSCORE', tag .. ':l', '-inf', now, 'LIMIT', 0, most)
end
local started, poison = 0, 0
for _, entry in ipairs(ended) do
    local lease = redis.call('HGET', tag .. ':t', entry)
    local state, pair, client, starts, epoch = head(entry)
    if state == 'R' or state == 'E' then
        if lease and string.sub(lease, 1, 1) == 's' then
            started = started + 1
            starts = math.min(starts + 1, 9)
        end
        epoch = string.format('%06d', (epoch + 1) % 1000000)
        if state == 'R' and starts >= 3 then
            poison = poison + 1
            hold_poison(entry, pair, epoch)
        else
            redis.call('SETRANGE', tag .. ':q:' .. entry, 1, starts .. epoch)
            if state == 'E' then
                push_expired(entry, pair)
            else
                push(entry, pair, client)
            end
        end
    end
end
if #ended > 0 then
    redis.call('ZREM', tag .. ':l', unpack(ended))
    redis.call('HDEL', tag .. ':t', unpack(ended))
end

-- Due retries and send_at.
local due_count = 0
for _, key_pair in ipairs(redis.call('SMEMBERS', tag .. ':p')) do
    local key = tag .. ':d:' .. key_pair
    local due = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, most)
    for _, entry in ipairs(due) do
        local state, pair, client = head(entry)
        if state == 'W' then
            redis.call('SETRANGE', tag .. ':q:' .. entry, 0, 'R')
            push(entry, pair, client)
            due_count = due_count + 1
        end
    end
    if #due > 0 then
        redis.call('ZREM', key, unpack(due))
    end
    if #due == most then
        more = '1'
    end
end

place_all()

-- Expired messages: their READY and DELAYED batches become claimable at once, before everything else and
-- through closed gates. The message stays in :x, a minute later, in case batches were leased just now.
local function expire(id)
    local count, suffix = message_head(id)
    for n = 0, (count or 0) - 1 do
        local entry = id .. '/' .. n .. suffix
        local state, pair = head(entry)
        if (state == 'R' or state == 'W') and not redis.call('HGET', tag .. ':t', entry) then
            if state == 'W' then
                redis.call('ZREM', tag .. ':d:' .. pair, entry)
            else
                redis.call('HINCRBY', tag .. ':k', 'stale|' .. pair, 1)
            end
            redis.call('SETRANGE', tag .. ':q:' .. entry, 0, 'E')
            push_expired(entry, pair)
        end
    end
    return count
end
local expired = redis.call('ZRANGEBYSCORE', tag .. ':x', '-inf', now - 1000, 'LIMIT', 0, math.ceil(most / 5))
for _, id in ipairs(expired) do
    if expire(id) then
        redis.call('ZADD', tag .. ':x', now + 60000, id)
    else
        redis.call('ZREM', tag .. ':x', id)
    end
end

local counters = redis.call('HMGET', tag .. ':k', 'history', 'dead')
local history, dead_bytes = tonumber(counters[1] or 0), tonumber(counters[2] or 0)
local history_before, dead_before = history, dead_bytes

-- Dead letters past their time or budget, oldest first: their bodies go. One of a message that is not at its end
-- yet waits for that.
local dead_removed = 0
local dead_ms, dead_most = tonumber(ARGV[7]), tonumber(ARGV[8])
for i = 1, most do
    local oldest = redis.call('ZRANGE', tag .. ':z', 0, 0, 'WITHSCORES')
    local id = oldest[1]
    if not id or (oldest[2] + dead_ms > now and (dead_most == 0 or dead_bytes <= dead_most)) then
        break
    end
    if redis.call('ZSCORE', tag .. ':x', id) then
        if tonumber(oldest[2]) >= now then
            break
        end
        redis.call('ZADD', tag .. ':z', now, id)
    else
        local _, _, charge = message_head(id)
        dead_bytes = dead_bytes - forget_dead(id, charge)
        dead_removed = dead_removed + 1
    end
    more = i == most and '1' or more
end

-- History past retention or budget, oldest end first; then the list of acceptance follows. The sums are those of
-- part_end.lua. A message that was replayed since has a later entry (:e).
local removed = 0
local replayed = redis.call('HLEN', tag .. ':e') > 0
local history_most = tonumber(ARGV[6])
local function remove(id)
    if replayed and redis.call('HEXISTS', tag .. ':e', id) == 1 then
        if redis.call('HINCRBY', tag .. ':e', id, -1) <= 0 then
            redis.call('HDEL', tag .. ':e', id)
        end
        return
    end
    local count, suffix, charge = message_head(id)
    if count then
        local bytes, dead = remove_message(id, count, suffix, charge)
        history, dead_bytes = history - bytes, dead_bytes - dead
    end
end
for _, item in ipairs(redis.call('LRANGE', tag .. ':f', 0, most - 1)) do
    local at, id = string.match(item, '^(%d+) (.+)$')
    if at and at + retention > now and (history_most == 0 or history <= history_most) then
        break
    end
    removed = removed + 1
    if id then
        remove(id)
    end
end
if history ~= history_before then
    redis.call('HINCRBY', tag .. ':k', 'history', history - history_before)
end
if dead_bytes ~= dead_before then
    redis.call('HINCRBY', tag .. ':k', 'dead', dead_bytes - dead_before)
end
if removed > 0 then
    redis.call('LTRIM', tag .. ':f', removed, -1)
    local ids, keys = redis.call('LRANGE', tag .. ':a', 0, most - 1), {}
    for i = 1, #ids do
        keys[i] = tag .. ':m:' .. ids[i]
    end
    local trim = 0
    if #ids > 0 then
        local alive = redis.call('MGET', unpack(keys))
        while trim < #ids and not alive[trim + 1] do
            trim = trim + 1
        end
    end
    if trim > 0 then
        redis.call('LTRIM', tag .. ':a', trim, -1)
        redis.call('HINCRBY', tag .. ':k', 'trimmed', trim)
    end
end

if #ended == most or removed == most or #expired == math.ceil(most / 5) then
    more = '1'
end
if woke then
    redis.call('PUBLISH', 'heave:ready', tag)
end
return {#ended, started, due_count, #expired, removed, orphans, more, poison, dead_removed}
