-- Messages the search index names for a term, newest first; queue/search.h has the layout of its records.
--
-- KEYS: shard tag. ARGV: number of the segment to begin with ('' the newest), how many of its records of the term stand
--   before the position ('' all do), the term's hash (4 bytes), its slot, time that ends the walk at older segments, time
--   the messages must be older than (ms; 0: none), most messages to return, most segments to look at, most bytes of
--   segments to read.
-- Reply: {position to go on from ('0': the end), numbers of segments that are not sorted, ULID (16 bytes), position, ...}.
local HEAD, RECORD = 4104, 20
local tag = KEYS[1]
local tail = tonumber(redis.call('HGET', tag .. ':k', 'segments') or 0)
local number, below = tonumber(ARGV[1]) or tail, tonumber(ARGV[2])
local hash, slot, since, before = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local want, looks, budget = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local unsorted = {}
local reply = {'0', unsorted}

-- The records that can be of the term; nil when the walk is over.
local function read(key)
    local len = redis.call('STRLEN', key)
    if len == 0 then
        return number == tail and '' or nil -- else its time is over, and so is that of all before it
    end
    if len % RECORD == 0 then
        if number < tail then
            unsorted[#unsorted + 1] = number
        end
        return redis.call('GET', key)
    end
    if since > 0 and struct.unpack('>I8', redis.call('GETRANGE', key, 0, 7)) < since then
        return nil
    end
    local first, last = 0, 0
    if slot > 0 then
        first, last = struct.unpack('>I4I4', redis.call('GETRANGE', key, 4 + 4 * slot, 11 + 4 * slot))
    else
        last = struct.unpack('>I4', redis.call('GETRANGE', key, 8, 11))
    end
    return last > first and redis.call('GETRANGE', key, HEAD + RECORD * first, HEAD + RECORD * last - 1) or ''
end

-- Takes the messages of the records, the last record first; the records of one message stand together. False when
-- there is no more room; then the last position is where to go on.
local function take(records)
    local matches, at = {}, 0
    while true do
        at = string.find(records, hash, at + 1, true)
        if not at then
            break
        end
        if at % RECORD == 1 then
            matches[#matches + 1] = at
        end
    end
    local previous
    for i = math.min(#matches, below or #matches), 1, -1 do
        local ulid = string.sub(records, matches[i] + 4, matches[i] + RECORD - 1)
        local position = string.format('s%d~%d', number, i - 1)
        if ulid ~= previous then
            if want == 0 then
                return false
            end
            previous = nil
            if before == 0 or struct.unpack('>I6', ulid) < before then
                previous = ulid
                want = want - 1
                reply[#reply + 1] = ulid
                reply[#reply + 1] = position
            end
        else
            reply[#reply] = position
        end
    end
    return true
end

number = math.min(number, tail)
while number >= 0 do
    local records = read(tag .. ':s:' .. (number == tail and 't' or string.format('%d', number)))
    if not records then
        return reply
    end
    if not take(records) then
        reply[1] = reply[#reply]
        return reply
    end
    number, below = number - 1, nil
    looks = looks - 1
    budget = budget - #records
    if number >= 0 and (looks <= 0 or budget <= 0) then
        reply[1] = string.format('s%d', number)
        return reply
    end
end
return reply
