-- Depths of all (lane, backend) pairs and the shard's counters; its cost grows with the number of pairs
-- and clients that have work, and with the leases, never with the queue. Leases are read, not counted as they
-- come and go: they are bounded by what is in flight, and a counter would cost every claim, start and settle.
--
-- What an operator took out of READY leaves a stale entry in its list (claim.lua): those are subtracted.
--
-- KEYS: shard tag. Reply: bytes, open messages, {recipients by state 0..6}, {dead letters: messages, bytes;
--   bytes of the history}, then per pair
--   pair, ready, claimed, started, delayed, held, entries of the oldest ready, claimed and started batch ('' without),
--   when the next delayed one is due, since when the first held one is held (ms, 0 without).
local tag = KEYS[1]
local counters = redis.call('HMGET', tag .. ':k', 'bytes', 'r0', 'r1', 'r2', 'r3', 'r4', 'r5', 'r6', 'dead', 'history')
local recipients = {}
for i = 1, 7 do
    recipients[i] = tonumber(counters[i + 1] or 0)
end
local reply = {tonumber(counters[1] or 0), redis.call('ZCARD', tag .. ':x'), recipients,
    {redis.call('ZCARD', tag .. ':z'), tonumber(counters[9] or 0), tonumber(counters[10] or 0)}}
local leases, leased = {}, redis.call('HGETALL', tag .. ':t')
for i = 1, #leased, 2 do
    local entry, lease = leased[i], leased[i + 1]
    local key = string.sub(lease, 1, 1) .. string.sub(lease, string.find(lease, '|', 1, true) + 1)
    local seen = leases[key]
    if not seen then
        leases[key] = {1, entry}
    else
        seen[1] = seen[1] + 1
        seen[2] = entry < seen[2] and entry or seen[2]
    end
end
local none = {0, ''}

local function first_score(key)
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    return first[2] or '0'
end

-- The first entry of a list that is no stale one, as far as twenty can tell.
local function first_of(key, pair, stale)
    if stale == 0 then
        return redis.call('LINDEX', key, 0)
    end
    for _, entry in ipairs(redis.call('LRANGE', key, 0, 19)) do
        local head = redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 23 + #pair)
        local state = string.byte(head)
        if (state == 82 or state == 69) and string.sub(head, 24) == pair .. '|'
            and redis.call('HEXISTS', tag .. ':t', entry) == 0 then
            return entry
        end
    end
end

for _, pair in ipairs(redis.call('SMEMBERS', tag .. ':p')) do
    local stale = tonumber(redis.call('HGET', tag .. ':k', 'stale|' .. pair) or 0)
    local ready, oldest = -stale, ''
    local function look(key)
        local length = redis.call('LLEN', key)
        ready = ready + length
        local first = length > 0 and first_of(key, pair, stale)
        if first and (oldest == '' or first < oldest) then
            oldest = first
        end
    end
    look(tag .. ':y:' .. pair)
    local first = 0
    repeat
        local clients = redis.call('LRANGE', tag .. ':c:' .. pair, first, first + 999)
        for _, client in ipairs(clients) do
            look(tag .. ':r:' .. pair .. '|' .. client)
        end
        first = first + 1000
    until #clients < 1000
    local claimed, started = leases['c' .. pair] or none, leases['s' .. pair] or none
    local n = #reply
    reply[n + 1], reply[n + 2] = pair, math.max(ready, 0)
    reply[n + 3], reply[n + 4] = claimed[1], started[1]
    reply[n + 5] = redis.call('ZCARD', tag .. ':d:' .. pair)
    reply[n + 6] = redis.call('ZCARD', tag .. ':h:' .. pair)
    reply[n + 7], reply[n + 8], reply[n + 9] = oldest, claimed[2], started[2]
    reply[n + 10], reply[n + 11] = first_score(tag .. ':d:' .. pair), first_score(tag .. ':h:' .. pair)
end
return reply
