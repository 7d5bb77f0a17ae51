-- Messages with a batch that is held or delayed, from a position: those held last, or due last, first.
--
-- KEYS: shard tag. ARGV: position ('' the first), most messages to return, 'h' or 'd', lane, backend ('' any), ids must be
--   below ('' none).
-- Reply: {position to go on from (0: the end), id, position, score, ...}. Positions are SCORE~ENTRY. Batches of a message
--   that stand together give it once.
local tag = KEYS[1]
local limit, before = tonumber(ARGV[2]), ARGV[6]
local score, entry = string.match(ARGV[1], '^(%d+)~(.+)$')
local found, floor = {}, nil -- floor: below it a pair has more that was not read

local function above(a, b)
    if a[3] ~= b[3] then
        return a[3] > b[3]
    end
    return a[1] > b[1]
end

-- As many of one (lane, backend) as can be on the page. Those of the same millisecond that were given are passed over;
-- there is a bound to that.
local function look(key)
    local offset, room = 0, limit
    repeat
        local part = redis.call('ZREVRANGEBYSCORE', key, score or '+inf', '-inf', 'WITHSCORES', 'LIMIT', offset, limit)
        for i = 1, #part, 2 do
            if part[i + 1] ~= score or part[i] < entry then
                found[#found + 1] = {part[i], part[i + 1], tonumber(part[i + 1])}
                room = room - 1
            end
        end
        offset = offset + #part / 2
    until #part < 2 * limit or room <= 0 or offset > 20000
    if room <= 0 and (not floor or above(found[#found], floor)) then
        floor = found[#found]
    end
end

for _, pair in ipairs(redis.call('SMEMBERS', tag .. ':p')) do
    local lane, backend = string.match(pair, '^([^|]*)|(.*)$')
    if (ARGV[4] == '' or ARGV[4] == lane) and (ARGV[5] == '' or ARGV[5] == backend) then
        look(tag .. ':' .. ARGV[3] .. ':' .. pair)
    end
end
table.sort(found, above)

-- A page may have ended between the batches of a message.
local reply, previous = {0}, entry and string.match(entry, '^[^/]+')
for i = 1, #found do
    local item = found[i]
    local id, position = string.match(item[1], '^[^/]+'), item[2] .. '~' .. item[1]
    if floor and above(floor, item) then
        return reply
    end
    if id == previous then
        if #reply > 1 then
            reply[#reply - 1] = position
        end
    elseif before == '' or id < before then
        if #reply >= 1 + 3 * limit then
            reply[1] = reply[#reply - 1]
            return reply
        end
        local n = #reply
        reply[n + 1], reply[n + 2], reply[n + 3] = id, position, item[2]
        previous = id
    end
    reply[1] = (floor or i < #found) and position or 0
end
return reply
