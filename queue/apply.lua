-- Does to batches what an operator wants, each only if its record is still the one that was looked at and nobody
-- holds it.
--
-- KEYS: shard tag. ARGV: per step
--   what, entry or id, stored batch as it was, stored batch to be, recipients that changed state as "state=count,...",
--   stored message to be and its expiry ('' unless the batch was done).
-- `what`: T to another state, X to its end with recipients that failed, expired or are unknown, P remove a finished
--   message, B drop the body of a message, F remove a message, these two if it is finished after the other steps.
-- Reply: per step 1 (done), 0 (not as it was), 2 (leased), 3 (its body is gone).
local tag = KEYS[1]
local STRIDE = 7
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- part: front
-- part: end
-- part: walk
-- part: head
-- part: remove

local replies, states, stale, woke = {}, {}, {}, false
local routes, route_order = {}, {}
local reopened_bytes = 0

local function place_later(entry, pair, client)
    local route = pair .. '|' .. client
    local list = routes[route]
    if not list then
        list = {pair = pair, client = client}
        routes[route] = list
        route_order[#route_order + 1] = list
    end
    list[#list + 1] = entry
end

-- A batch that was done is so no more: the counterpart of batch_ended() and message_ended().
local function reopen(id, single, charge, stored_bytes, message, expires)
    if redis.call('HINCRBY', tag .. ':u', id, -1) <= 0 then
        redis.call('HDEL', tag .. ':u', id)
        redis.call('ZREM', tag .. ':z', id)
    end
    history = history - HISTORY_BATCH - stored_bytes
    if not single then
        redis.call('INCR', tag .. ':o:' .. id)
    end
    if redis.call('ZADD', tag .. ':x', expires, id) == 1 then
        redis.call('HINCRBY', tag .. ':e', id, 1)
        history = history - HISTORY_MESSAGE
        kept = kept - charge
        reopened_bytes = reopened_bytes + charge
    end
    redis.call('SET', tag .. ':m:' .. id, message)
end

local function leave(entry, state, pair)
    if state == 'R' or state == 'E' then
        stale[pair] = (stale[pair] or 0) + 1
    elseif state == 'W' then
        redis.call('ZREM', tag .. ':d:' .. pair, entry)
    elseif state == 'H' then
        redis.call('ZREM', tag .. ':h:' .. pair, entry)
    end
end

local function enter(entry, state, pair, client, due)
    if state == 'R' then
        place_later(entry, pair, client)
    elseif state == 'E' then
        redis.call('RPUSH', tag .. ':y:' .. pair, entry)
        redis.call('HSET', tag .. ':g', '!' .. pair, '1')
        woke = true
    elseif state == 'W' then
        redis.call('ZADD', tag .. ':d:' .. pair, due, entry)
    elseif state == 'H' then
        redis.call('ZADD', tag .. ':h:' .. pair, now, entry)
    end
end

local function transition(i, dead)
    local entry, before, after = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    if redis.call('GET', tag .. ':q:' .. entry) ~= before then
        return 0
    elseif redis.call('HEXISTS', tag .. ':t', entry) == 1 then
        return 2
    end
    local id = string.sub(entry, 1, string.find(entry, '/', 1, true) - 1)
    local count, _, charge = message_head(id)
    local from, from_pair = batch_head(before)
    local to, to_pair, client, due = batch_head(after)
    if from == 'D' then
        if redis.call('EXISTS', tag .. ':b:' .. id) == 0 then
            return 3
        end
        reopen(id, count == 1, charge, #before, ARGV[i + 5], ARGV[i + 6])
    end
    redis.call('SET', tag .. ':q:' .. entry, after)
    if from ~= to or from_pair ~= to_pair then
        leave(entry, from, from_pair)
        enter(entry, to, to_pair, client, due)
        if to == 'D' then
            batch_ended(id, count == 1, charge, #after, dead)
        end
    end
    for state, change in string.gmatch(ARGV[i + 4], '(%d)=(-?%d+)') do
        states[state] = (states[state] or 0) + change
    end
    return 1
end

local function remove(id)
    local count, suffix, charge = message_head(id)
    if not count or redis.call('ZSCORE', tag .. ':x', id) then
        return 0
    end
    local bytes, dead = remove_message(id, count, suffix, charge)
    history, kept = history - bytes, kept - dead
    return 1
end

for i = 1, #ARGV, STRIDE do
    local what = ARGV[i]
    if what == 'P' then
        replies[#replies + 1] = remove(ARGV[i + 1])
    elseif what == 'B' or what == 'F' then
        replies[#replies + 1] = 0
    else
        replies[#replies + 1] = transition(i, what == 'X')
    end
end
for _, list in ipairs(route_order) do
    place(list.pair, list.client, list, 'RPUSH')
    woke = true
end
write_ends()
for i = 1, #ARGV, STRIDE do
    local what, id = ARGV[i], ARGV[i + 1]
    local count, suffix, charge = nil, nil, nil
    if (what == 'B' or what == 'F') and not redis.call('ZSCORE', tag .. ':x', id) then
        count, suffix, charge = message_head(id)
    end
    if count then
        local bytes, dead = 0, 0
        if what == 'F' then
            bytes, dead = remove_message(id, count, suffix, charge)
        else
            dead = forget_dead(id, charge)
        end
        if bytes ~= 0 then
            redis.call('HINCRBY', tag .. ':k', 'history', -bytes)
        end
        if dead ~= 0 then
            redis.call('HINCRBY', tag .. ':k', 'dead', -dead)
        end
        replies[(i - 1) / STRIDE + 1] = 1
    end
end
if reopened_bytes ~= 0 then
    redis.call('HINCRBY', tag .. ':k', 'bytes', reopened_bytes)
end
for pair, count in pairs(stale) do
    redis.call('HINCRBY', tag .. ':k', 'stale|' .. pair, count)
end
for state, count in pairs(states) do
    if count ~= 0 then
        redis.call('HINCRBY', tag .. ':k', 'r' .. state, count)
    end
end
if woke then
    redis.call('PUBLISH', 'heave:ready', tag)
end
return replies
