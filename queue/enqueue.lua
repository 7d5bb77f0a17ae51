-- Stores a group of messages with all their batches; see queue/README.md for the keys.
--
-- KEYS: shard tag, then one idempotency key for each message that has one, in order.
-- ARGV: max_bytes (0: no limit at all), idempotency ttl ms, number of messages; then per message
--   id, charge, expires_ms, recipients, due_ms (0: ready), flags (1: there is a key; 2 * n: the body is large, its n list
--   elements were sent before), number of batches, most bytes for its lane, the route LANE|BACKEND|CLIENT of each batch; of a
--   large one '*KiB'; with a key 'owner|fingerprint', answer.
-- At the end: how long a segment of the search index lives (ms), records for the index.
-- Reply: per message 0 (stored), 1 (full), 2 (conflict), 3 (its large body did not arrive),
--   4 (its key is reserved by another owner) or {id, answer} (known key);
--   then, when the tail of the search index became a segment, its number.
--
-- The records (:m, :q, :o, small :b) were written by the MSET before this script in the same transaction: those of a
-- message that is refused are deleted here. Everything else of the group is collected first and written with a few variadic
-- calls: the price of a call is most of the price of a script.
local tag = KEYS[1]
local max_bytes = tonumber(ARGV[1])
local used = 0
if max_bytes > 0 then
    used = tonumber(redis.call('HGET', tag .. ':k', 'bytes') or 0)
end
local next_key = 2
local at = 4
local expiries, ids, replies = {}, {}, {}
local ready, ready_order, delayed, delayed_order = {}, {}, {}, {}
local charged, recipients = 0, 0
local large, unwanted = {}, {}

local function add(lists, order, key, first, second)
    local list = lists[key]
    if not list then
        list = {}
        lists[key] = list
        order[#order + 1] = key
    end
    list[#list + 1] = first
    if second then
        list[#list + 1] = second
    end
end

local function many(command, key, list)
    local result = 0
    for i = 1, #list, 4000 do
        local last = math.min(i + 3999, #list)
        if key then
            result = redis.call(command, key, unpack(list, i, last))
        else
            result = redis.call(command, unpack(list, i, last))
        end
    end
    return result
end

local function known(claim)
    local key = KEYS[next_key]
    next_key = next_key + 1
    local old = redis.call('HMGET', key, 'f', 'i', 'a', 't')
    local owner, fingerprint = string.match(claim, '^([^|]*)|(.*)$')
    if not old[2] then
        if old[4] and old[4] ~= owner then
            return 4
        end
        return nil, key, fingerprint
    end
    if old[1] ~= fingerprint then
        return 2
    end
    return {old[2], old[3]}
end

local function refuse(id, batches, suffix)
    local n = #unwanted
    unwanted[n + 1], unwanted[n + 2], unwanted[n + 3] = tag .. ':m:' .. id, tag .. ':b:' .. id, tag .. ':o:' .. id
    for b = 0, batches - 1 do
        unwanted[n + 4 + b] = tag .. ':q:' .. id .. '/' .. b .. suffix
    end
end

for i = 1, tonumber(ARGV[3]) do
    local id, charge = ARGV[at], tonumber(ARGV[at + 1])
    local due, flags, batches = ARGV[at + 4], tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
    local reply, key, fingerprint = nil, nil, nil
    local routes = at + 8
    local suffix, rest = '', routes + batches
    if flags >= 2 then
        suffix = ARGV[rest]
        rest = rest + 1
    end
    if flags % 2 == 1 then
        reply, key, fingerprint = known(ARGV[rest])
        rest = rest + 2
    end
    if not reply and max_bytes > 0 and used + charge > tonumber(ARGV[at + 7]) then
        reply = 1
    end
    if not reply and flags >= 2 then
        local body_key = tag .. ':b:' .. id
        if redis.call('LLEN', body_key) ~= math.floor(flags / 2) then
            reply = 3
        else
            large[#large + 1] = body_key
        end
    end
    if reply then
        -- One that waits under this very id was sent again: what the MSET wrote is what stood there at first.
        if type(reply) ~= 'table' or reply[1] ~= id or not redis.call('ZSCORE', tag .. ':x', id) then
            refuse(id, batches, suffix)
        end
    else
        reply = 0
        used = used + charge
        charged = charged + charge
        recipients = recipients + tonumber(ARGV[at + 3])
        ids[#ids + 1] = id
        expiries[#expiries + 1] = ARGV[at + 2]
        expiries[#expiries + 1] = id
        for b = 0, batches - 1 do
            local entry, route = id .. '/' .. b .. suffix, ARGV[routes + b]
            if due == '0' then
                add(ready, ready_order, route, entry)
            else
                add(delayed, delayed_order, tag .. ':d:' .. string.match(route, '^([^|]*|[^|]*)|'), due, entry)
            end
        end
        if key then
            redis.call('HSET', key, 'f', fingerprint, 'i', id, 'a', ARGV[rest - 1])
            redis.call('PEXPIRE', key, ARGV[2])
        end
    end
    replies[i] = reply
    at = rest
end
if #unwanted > 0 then
    many('UNLINK', nil, unwanted)
end
if #ids == 0 then
    return replies
end

for _, body_key in ipairs(large) do
    redis.call('PERSIST', body_key)
end
many('ZADD', tag .. ':x', expiries)
many('RPUSH', tag .. ':a', ids)
for _, key in ipairs(delayed_order) do
    many('ZADD', key, delayed[key])
end
local woke = false
for _, route in ipairs(ready_order) do
    local list = ready[route]
    if many('RPUSH', tag .. ':r:' .. route, list) == #list then
        -- The list was empty, so its client was not in the rotation of (lane, backend).
        local pair, client = string.match(route, '^([^|]*|[^|]*)|(.*)$')
        if redis.call('RPUSH', tag .. ':c:' .. pair, client) == 1 then
            woke = true
        end
    end
end
redis.call('HINCRBY', tag .. ':k', 'bytes', charged)
redis.call('HINCRBY', tag .. ':k', 'r0', recipients)
local records = ARGV[#ARGV]
if #records > 0 and redis.call('APPEND', tag .. ':s:t', records) >= 400000 then
    local number = redis.call('HINCRBY', tag .. ':k', 'segments', 1) - 1
    local segment = tag .. ':s:' .. string.format('%d', number)
    redis.call('RENAME', tag .. ':s:t', segment)
    redis.call('PEXPIRE', segment, ARGV[#ARGV - 1])
    replies[#replies + 1] = number
end
if woke then
    redis.call('PUBLISH', 'heave:ready', tag)
end
return replies
