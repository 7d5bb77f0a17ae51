-- Ends claims: writes what became of each batch, fenced by its token.
--
-- KEYS: shard tag. ARGV: per batch
--   entry, token, what, stored batch, pair, client, due_ms, charge, '1' when the message has one batch,
--   recipients finished as "state=count,...".
-- `what`: D done, X done with recipients that failed, expired or are unknown, R ready again (in front, by age),
--   W delayed to due_ms, H held, B given back unsent (nothing is written), U unreadable (held as it is).
-- Reply: per batch 1 (written) or 0 (lease lost, nothing written).
--
-- A settlement that is repeated because the first answer was lost finds its token gone but the stored
-- batch equal to what it would write: that is a success, not a lost lease.
local tag = KEYS[1]
local STRIDE = 10
local entries, keys = {}, {}
for i = 1, #ARGV, STRIDE do
    entries[#entries + 1] = ARGV[i]
end
local leased = redis.call('HMGET', tag .. ':t', unpack(entries))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ended, strings = {}, {}
local states, replies, woke = {}, {}, false
local fronts, front_order = {}, {}
-- part: front
-- part: end

local function to_front(entry, pair, client)
    local route = pair .. '|' .. client
    local list = fronts[route]
    if not list then
        list = {pair = pair, client = client}
        fronts[route] = list
        front_order[#front_order + 1] = list
    end
    list[#list + 1] = entry
end

local function write(i, entry)
    local what = ARGV[i + 2]
    if what == 'B' then
        local pair = ARGV[i + 4]
        if redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 0) == 'E' then
            redis.call('RPUSH', tag .. ':y:' .. pair, entry)
            redis.call('HSET', tag .. ':g', '!' .. pair, '1')
            woke = true
        else
            to_front(entry, pair, ARGV[i + 5])
        end
        return
    end
    if what == 'U' then
        redis.call('SETRANGE', tag .. ':q:' .. entry, 0, 'H')
        redis.call('ZADD', tag .. ':h:' .. ARGV[i + 4], now, entry)
        return
    end
    strings[#strings + 1] = tag .. ':q:' .. entry
    strings[#strings + 1] = ARGV[i + 3]
    if what == 'D' or what == 'X' then
        local id = string.sub(entry, 1, string.find(entry, '/', 1, true) - 1)
        batch_ended(id, ARGV[i + 8] == '1', tonumber(ARGV[i + 7]), #ARGV[i + 3], what == 'X')
    elseif what == 'R' then
        to_front(entry, ARGV[i + 4], ARGV[i + 5])
    elseif what == 'W' then
        redis.call('ZADD', tag .. ':d:' .. ARGV[i + 4], ARGV[i + 6], entry)
    elseif what == 'H' then
        redis.call('ZADD', tag .. ':h:' .. ARGV[i + 4], now, entry)
    end
end

for n = 1, #entries do
    local i = (n - 1) * STRIDE + 1
    local entry, token, lease = ARGV[i], ARGV[i + 1], leased[n]
    if lease and string.sub(lease, 2, #token + 2) == token .. '|' then
        leased[n] = false
        ended[#ended + 1] = entry
        write(i, entry)
        local count = ARGV[i + 9]
        if count ~= '' then
            states[count] = (states[count] or 0) + 1
        end
        replies[n] = 1
    elseif ARGV[i + 3] ~= '' and redis.call('GET', tag .. ':q:' .. entry) == ARGV[i + 3] then
        replies[n] = 1
    else
        replies[n] = 0
    end
end
if #ended > 0 then
    redis.call('HDEL', tag .. ':t', unpack(ended))
    redis.call('ZREM', tag .. ':l', unpack(ended))
end
if #strings > 0 then
    redis.call('MSET', unpack(strings))
end
for _, list in ipairs(front_order) do
    place(list.pair, list.client, list, 'LPUSH')
    woke = true
end
write_ends()
local sums = {}
for text, times in pairs(states) do
    for state, count in string.gmatch(text, '(%d)=(%d+)') do
        sums[state] = (sums[state] or 0) + tonumber(count) * times
    end
end
for state, count in pairs(sums) do
    redis.call('HINCRBY', tag .. ':k', 'r' .. state, count)
end
if woke then
    redis.call('PUBLISH', 'heave:ready', tag)
end
return replies
