-- Messages from a position, newest first.
--
-- KEYS: shard tag. ARGV: position ('' the newest), most messages to return, most to look at, 'a' (all, in order of
--   acceptance), 'x' (the open ones, those that expire last first) or 'z' (dead letters, the
--   last first), client, lane ('' any), ids must be below ('' none).
-- Positions: of 'a' how many messages stand before it, counted since the data set began; of 'x' and 'z' SCORE~ID.
-- Reply: {position to go on from (0: the end), id, position, expiry, ...}. What was looked at and does not match
--   is passed over, so a reply may be short or empty and still not the end.
local tag = KEYS[1]
local limit, looks = tonumber(ARGV[2]), tonumber(ARGV[3])
local client, lane, before = ARGV[5], ARGV[6], ARGV[7]
local reply = {0}

-- Adds those of `ids` that match, while there is room; returns how many were looked at.
local function take(ids, position_of, score_of)
    local keys, stored = {}, {}
    for i = 1, #ids do
        keys[i] = tag .. ':m:' .. ids[i]
    end
    local named = client ~= '' or lane ~= ''
    if named or ARGV[4] == 'a' then
        -- Of all messages, some were removed while older ones are still there.
        stored = redis.call('MGET', unpack(keys))
    end
    for i = 1, #ids do
        local good = (before == '' or ids[i] < before) and (stored[i] or ARGV[4] ~= 'a')
        if good and named then
            local its_client, its_lane = string.match(stored[i] or '', '^[^\n]*\n([^\n]*)|([^\n|]*)\n')
            good = its_client and (client == '' or client == its_client) and (lane == '' or lane == its_lane)
        end
        if good then
            local n = #reply
            reply[n + 1], reply[n + 2], reply[n + 3] = ids[i], position_of(i), score_of(i)
            if n + 3 >= 1 + 3 * limit then
                return i
            end
        end
    end
    return #ids
end

if ARGV[4] == 'a' then
    local trimmed = tonumber(redis.call('HGET', tag .. ':k', 'trimmed') or 0)
    local position = tonumber(ARGV[1]) or trimmed + redis.call('LLEN', tag .. ':a')
    while position > trimmed and looks > 0 and #reply < 1 + 3 * limit do
        local first = math.max(position - math.min(100, looks), trimmed)
        local found, ids = redis.call('LRANGE', tag .. ':a', first - trimmed, position - trimmed - 1), {}
        if #found == 0 then
            position = trimmed
            break
        end
        for i = #found, 1, -1 do
            ids[#ids + 1] = found[i]
        end
        local top = first + #found
        local looked = take(ids, function(i) return string.format('%.0f', top - i) end, function() return '0' end)
        looks = looks - looked
        position = top - looked
    end
    reply[1] = position > trimmed and string.format('%.0f', position) or 0
    return reply
end

-- Many may expire in the same millisecond; those before the position are passed over. There is a bound to that, too.
local score, id = string.match(ARGV[1], '^(%d+)~(.+)$')
local top, offset, ties = score or '+inf', 0, 20000
while looks > 0 and #reply < 1 + 3 * limit do
    local found = redis.call('ZREVRANGEBYSCORE', tag .. ':' .. ARGV[4], top, '-inf', 'WITHSCORES', 'LIMIT', offset, 100)
    if #found == 0 then
        reply[1] = 0
        return reply
    end
    offset = offset + #found / 2
    local ids, scores = {}, {}
    for i = 1, #found, 2 do
        if found[i + 1] ~= score or found[i] < id then
            ids[#ids + 1] = found[i]
            scores[#ids] = found[i + 1]
        end
    end
    if #ids > 0 then
        local looked = take(ids, function(i) return scores[i] .. '~' .. ids[i] end, function(i) return scores[i] end)
        looks = looks - looked
        reply[1] = scores[looked] .. '~' .. ids[looked]
    else
        ties = ties - 100
        if ties <= 0 then
            top, offset, score, ties = '(' .. score, 0, nil, 20000
        end
    end
end
return reply
