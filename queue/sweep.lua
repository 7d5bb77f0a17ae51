-- Moves what time has moved: due retries, ended leases, expired messages, history past retention.
--
-- KEYS: shard tag. ARGV: lock owner, lock_ms, retention_ms, most items per step, '1' to end leases.
-- Reply: {ended leases, ended leases that were started, due batches, expired messages, removed messages,
--   batches whose record is missing, '1' when more is waiting}; nil when another handle holds the lock.
local tag = KEYS[1]
if not redis.call('SET', tag .. ':lock', ARGV[1], 'NX', 'PX', ARGV[2])
    and redis.call('GET', tag .. ':lock') ~= ARGV[1] then
    return false
end
local retention, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local more, woke, orphans = '0', false, 0

-- The head of a stored batch: state, started, epoch (6 digits), due_ms (14 digits), route up to the line's end.
local function head(entry)
    local text = redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 400)
    local state, epoch, pair, client = string.match(text, '^(%a)%d(%d%d%d%d%d%d)%d+ ([^|\n]*|[^|\n]*)|([^\n]*)\n')
    if not state then
        orphans = orphans + 1
    end
    return state, epoch, pair, client
end

local function push(command, entry, pair, client)
    if redis.call(command, tag .. ':r:' .. pair .. '|' .. client, entry) == 1 then
        redis.call('RPUSH', tag .. ':c:' .. pair, client)
    end
    woke = true
end

-- What nobody may send any more: served first, and through closed gates.
local function push_expired(entry, pair)
    redis.call('RPUSH', tag .. ':y:' .. pair, entry)
    redis.call('HSET', tag .. ':g', '!' .. pair, '1')
    woke = true
end

-- Ended leases: READY again, at the front.
local ended = {}
if ARGV[5] == '1' then
    ended = redis.call('ZRANGEBYSCORE', tag .. ':l', '-inf', now, 'LIMIT', 0, most)
end
local started = 0
for i = #ended, 1, -1 do
    local entry = ended[i]
    local lease = redis.call('HGET', tag .. ':t', entry)
    local state, epoch, pair, client = head(entry)
    if state == 'R' or state == 'E' then
        local flag = '0'
        if lease and string.sub(lease, 1, 1) == 's' then
            flag = '1'
            started = started + 1
        end
        if flag == '1' then
            redis.call('SETRANGE', tag .. ':q:' .. entry, 1, '1')
        end
        redis.call('SETRANGE', tag .. ':q:' .. entry, 2, string.format('%06d', (epoch + 1) % 1000000))
        if state == 'E' then
            push_expired(entry, pair)
        else
            push('LPUSH', entry, pair, client)
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
        local state, _, pair, client = head(entry)
        if state == 'W' then
            redis.call('SETRANGE', tag .. ':q:' .. entry, 0, 'R')
            push('RPUSH', entry, pair, client)
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

-- Expired messages: their READY and DELAYED batches become claimable at once, before everything else and
-- through closed gates. The message stays in :x, a minute later, in case batches were leased just now.
local function expire(id)
    local message = redis.call('GETRANGE', tag .. ':m:' .. id, 0, 40)
    local count, suffix = string.match(message, '^(%d+)(%**%d*)\n')
    for n = 0, (count or 0) - 1 do
        local entry = id .. '/' .. n .. suffix
        local state, _, pair, client = head(entry)
        if (state == 'R' or state == 'W') and not redis.call('HGET', tag .. ':t', entry) then
            if state == 'W' then
                redis.call('ZREM', tag .. ':d:' .. pair, entry)
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

-- History past retention, oldest end first; then the list of acceptance follows.
local removed, gone = 0, {}
for _, item in ipairs(redis.call('LRANGE', tag .. ':f', 0, most - 1)) do
    local at, id = string.match(item, '^(%d+) (.+)$')
    if at and at + retention > now then
        break
    end
    removed = removed + 1
    local message = id and redis.call('GETRANGE', tag .. ':m:' .. id, 0, 40) or ''
    local count, suffix = string.match(message, '^(%d+)(%**%d*)\n')
    for n = 0, (count or 0) - 1 do
        gone[#gone + 1] = tag .. ':q:' .. id .. '/' .. n .. suffix
        if #gone >= 1000 then
            redis.call('UNLINK', unpack(gone))
            gone = {}
        end
    end
    gone[#gone + 1] = tag .. ':m:' .. (id or '')
end
if removed > 0 then
    redis.call('UNLINK', unpack(gone))
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
return {#ended, started, due_count, #expired, removed, orphans, more}
