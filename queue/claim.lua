-- Leases ready batches for several wants at once.
--
-- KEYS: shard tag. ARGV: lease_ms, token, most body bytes to hand out, number of wants; then per want
--   pair, backend, most batches (negative: of expired messages only).
-- Reply: {closed_until_ms per want}, {entry, stored batch, ...}. The holder of the leases reads messages and bodies by
--   himself: on their way through a script they would be copied three times and hashed.
--
-- A popped entry is taken only when its batch is READY ('R', or 'E': past its expiry), not leased, and still of
-- this pair. All others are stale: their batch left the list without being popped (it expired, an operator took
-- it). Whoever made them stale counted them in `stale|PAIR`; they are dropped and uncounted here, and others are
-- popped in their place, or what stands behind many of them would seem not to be there.
local tag = KEYS[1]
local lease_ms, token, budget = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local wants = tonumber(ARGV[4])
local taken, want_of, looked = {}, {}, 0
local LOOKS = 1000 -- entries; a call that drops stale ones pops no more when it has looked at so many

-- What an entry takes of the budget: large bodies are told by it (id/n*KiB).
local function cost(entry)
    local star = string.find(entry, '*', 1, true)
    return star and tonumber(string.sub(entry, star + 1)) * 1024 or 16384
end

-- Pops up to `max` entries off the front of a list while their bodies fit the budget. Returns how many, and whether
-- the list is empty now.
local function take(key, max, want)
    local got = redis.call('LRANGE', key, 0, max)
    local n = 0
    while n < #got and n < max and budget > 0 do
        n = n + 1
        budget = budget - cost(got[n])
        taken[#taken + 1] = got[n]
        want_of[#taken] = want
    end
    if n > 0 then
        redis.call('LTRIM', key, n, -1)
    end
    return n, n == #got
end

-- Each client with work gets an equal part, then goes to the end of the rotation. One whose part was cut because
-- `max` ended stays in front and comes first next time, so that parts are equal over several claims; one cut by the
-- budget goes to the end like the others, or large bodies would keep it in front for ever.
local function rotate(pair, max, want)
    local rotation = tag .. ':c:' .. pair
    while max > 0 and budget > 0 do
        local clients = redis.call('LRANGE', rotation, 0, max)
        if #clients == 0 then
            return
        end
        local share = math.ceil(max / #clients)
        local served, back = 0, {}
        for _, client in ipairs(clients) do
            if max <= 0 or budget <= 0 then
                break
            end
            local part = math.min(share, max)
            local n, empty = take(tag .. ':r:' .. pair .. '|' .. client, part, want)
            max = max - n
            if n == part and part < share and not empty then
                break
            end
            served = served + 1
            if not empty then
                back[#back + 1] = client
            end
        end
        if #clients > 1 or #back == 0 then
            redis.call('LTRIM', rotation, served, -1)
            if #back > 0 then
                redis.call('RPUSH', rotation, unpack(back))
            end
        end
    end
end

local asked = {}
for i = 0, wants - 1 do
    asked[#asked + 1] = ARGV[6 + 3 * i]
    asked[#asked + 1] = '!' .. ARGV[5 + 3 * i]
end
local gates = redis.call('HMGET', tag .. ':g', unpack(asked))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local closed = {}

local function serve(i, max)
    local pair, most = ARGV[2 + 3 * i], tonumber(ARGV[4 + 3 * i])
    if gates[2 * i] then
        -- Expired messages pass even a closed gate: nothing of them will be sent.
        local n, empty = take(tag .. ':y:' .. pair, max, i)
        max = max - n
        if empty then
            redis.call('HDEL', tag .. ':g', '!' .. pair)
            gates[2 * i] = false
        end
    end
    if closed[i] == 0 and most >= 0 then
        rotate(pair, max, i)
    end
end

local batches, ends, tokens, seen, stale = {}, {}, {}, {}, {}
local lease_end = string.format('%.0f', now + lease_ms)

-- Takes what was popped. Returns how many stale entries there were of each want; nil when there were none.
local function check()
    local entries, keys, dropped = {}, {}, nil
    for i = looked + 1, #taken do
        entries[#entries + 1] = taken[i]
        keys[#keys + 1] = tag .. ':q:' .. taken[i]
    end
    local leased = redis.call('HMGET', tag .. ':t', unpack(entries))
    local stored = redis.call('MGET', unpack(keys))
    for i, entry in ipairs(entries) do
        local want, state = want_of[looked + i], stored[i] and string.byte(stored[i])
        local pair = ARGV[2 + 3 * want]
        if not leased[i] and not seen[entry] and (state == 82 or state == 69)
            and (string.sub(stored[i], 24, 24 + #pair) == pair .. '|' or string.byte(stored[i], 23) ~= 32) then
            seen[entry] = true
            local n = #ends
            batches[n + 1], batches[n + 2] = entry, stored[i]
            ends[n + 1], ends[n + 2] = lease_end, entry
            tokens[n + 1], tokens[n + 2] = entry, 'c' .. token .. '|' .. pair
        else
            stale[pair] = (stale[pair] or 0) + 1
            budget = budget + cost(entry)
            dropped = dropped or {}
            dropped[want] = (dropped[want] or 0) + 1
        end
    end
    looked = #taken
    return dropped
end

for i = 1, wants do
    local gate = tonumber(gates[2 * i - 1] or 0)
    closed[i] = gate > now and gate or 0
    serve(i, math.abs(tonumber(ARGV[4 + 3 * i])))
end
while #taken > looked do
    local dropped = check()
    if dropped and looked >= LOOKS then
        redis.call('PUBLISH', 'heave:ready', tag) -- there may be more behind them
        break
    end
    for want, count in pairs(dropped or {}) do
        serve(want, count)
    end
end
for pair, count in pairs(stale) do
    redis.call('HINCRBY', tag .. ':k', 'stale|' .. pair, -count)
end
if #ends > 0 then
    redis.call('ZADD', tag .. ':l', unpack(ends))
    redis.call('HSET', tag .. ':t', unpack(tokens))
end
return {closed, batches}
