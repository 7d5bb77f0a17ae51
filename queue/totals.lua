-- Depths of all (lane, backend) pairs and the shard's counters; its cost grows with the number of pairs
-- and clients that have work, and with the leases, never with the queue.
--
-- KEYS: shard tag. Reply: bytes, open messages, {recipients by state 0..6}, then per pair
--   pair, ready, claimed, started, delayed, held, entry of the oldest ready batch ('' without).
local tag = KEYS[1]
local counters = redis.call('HMGET', tag .. ':k', 'bytes', 'r0', 'r1', 'r2', 'r3', 'r4', 'r5', 'r6')
local recipients = {}
for i = 1, 7 do
    recipients[i] = tonumber(counters[i + 1] or 0)
end
local reply = {tonumber(counters[1] or 0), redis.call('ZCARD', tag .. ':x'), recipients}
local leases = {}
for _, lease in ipairs(redis.call('HVALS', tag .. ':t')) do
    local key = string.sub(lease, 1, 1) .. string.sub(lease, string.find(lease, '|', 1, true) + 1)
    leases[key] = (leases[key] or 0) + 1
end
for _, pair in ipairs(redis.call('SMEMBERS', tag .. ':p')) do
    local ready, oldest = redis.call('LLEN', tag .. ':y:' .. pair), ''
    local function look(key)
        local head = redis.call('LINDEX', key, 0)
        if head and (oldest == '' or head < oldest) then
            oldest = head
        end
    end
    if ready > 0 then
        look(tag .. ':y:' .. pair)
    end
    for _, client in ipairs(redis.call('LRANGE', tag .. ':c:' .. pair, 0, 999)) do
        local key = tag .. ':r:' .. pair .. '|' .. client
        ready = ready + redis.call('LLEN', key)
        look(key)
    end
    local n = #reply
    reply[n + 1], reply[n + 2] = pair, ready
    reply[n + 3], reply[n + 4] = leases['c' .. pair] or 0, leases['s' .. pair] or 0
    reply[n + 5] = redis.call('ZCARD', tag .. ':d:' .. pair)
    reply[n + 6] = redis.call('ZCARD', tag .. ':h:' .. pair)
    reply[n + 7] = oldest
end
return reply
