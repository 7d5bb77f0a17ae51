-- Messages in order of acceptance, newest first, from a position.
--
-- KEYS: shard tag. ARGV: position ('' the newest; else how many messages stand before it, counted since the
--   data set began), most messages to return, most to look at, '1' for unfinished only, client, lane ('' any).
-- Reply: {position to go on from (0: the end), id, position, ...}. What was looked at and does not match
--   is passed over, so a reply may be short or empty and still not the end.
local tag = KEYS[1]
local limit, looks = tonumber(ARGV[2]), tonumber(ARGV[3])
local trimmed = tonumber(redis.call('HGET', tag .. ':k', 'trimmed') or 0)
local position = tonumber(ARGV[1]) or trimmed + redis.call('LLEN', tag .. ':a')
local reply = {0}

local function matches(message)
    if not message then
        return false
    end
    local client, lane = string.match(message, '^[^\n]*\n([^\n]*)|([^\n|]*)\n')
    return (ARGV[5] == '' or ARGV[5] == client) and (ARGV[6] == '' or ARGV[6] == lane)
end

while position > trimmed and looks > 0 do
    local first = math.max(position - math.min(100, looks), trimmed)
    local ids = redis.call('LRANGE', tag .. ':a', first - trimmed, position - trimmed - 1)
    if #ids == 0 then
        position = trimmed
        break
    end
    local keys = {}
    for i = 1, #ids do
        keys[i] = tag .. ':m:' .. ids[i]
    end
    local stored = redis.call('MGET', unpack(keys))
    local open = ARGV[4] == '1' and redis.call('ZMSCORE', tag .. ':x', unpack(ids)) or nil
    for i = #ids, 1, -1 do
        position = first + i - 1
        looks = looks - 1
        if matches(stored[i]) and (not open or open[i]) then
            reply[#reply + 1] = ids[i]
            reply[#reply + 1] = string.format('%.0f', position)
            if #reply >= 1 + 2 * limit then
                reply[1] = position > trimmed and string.format('%.0f', position) or 0
                return reply
            end
        end
    end
end
reply[1] = position > trimmed and string.format('%.0f', position) or 0
return reply
