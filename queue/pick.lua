-- Messages and batches an operator may have meant, some at a time; the rest is decided in C (queue_work.c).
--
-- KEYS: shard tag. ARGV: source, cursor ('' the beginning), most messages, most batches, letters of the states
--   wanted, lane, backend, client ('' any); for the source 'i' then ids ("id" or "id/number").
-- Sources: x open messages, z dead letters, f finished messages (the newest first), i the ids given.
-- Reply: {cursor to go on from ('' the end), messages looked at, {id, stored message, entry, stored batch,
--   lease, ...}, ...}. Of the source i every message is in it, {id} alone when there is none, and when no batch of it
--   is wanted {id, stored message, letters of the states they are in; C leased, ? without a record}.
--
-- Cursors: x and z "N:score:id", f "N:position", i "N:position"; N is the batch to go on with.
local tag = KEYS[1]
local source, cursor, most, budget = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local letters, lane, backend, client = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
-- part: walk
-- part: head

local first, score, from = string.match(cursor, '^(%d+):([^:]+):?(.*)$')
first = tonumber(first) or 0
local reply = {'', 0}

local function wanted(text)
    local state, _, of_client, _, of_lane, of_backend = batch_head(text)
    -- The list of a host in a client that is a network is called "client#0" to "client#f".
    return state and string.find(letters, state, 1, true) and (lane == '' or lane == of_lane)
        and (backend == '' or backend == of_backend)
        and (client == '' or client == of_client or client .. '#' == string.sub(of_client, 1, #client + 1))
end

local function letters_of(id, start, stop, suffix)
    local letters = ''
    for n = start, stop do
        local entry = id .. '/' .. n .. suffix
        local letter = batch_head(redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 400)) or '?'
        if redis.call('HEXISTS', tag .. ':t', entry) == 1 then
            letter = 'C'
        end
        letters = string.find(letters, letter, 1, true) and letters or letters .. letter
    end
    return letters
end

-- Adds a message with those of its batches that are wanted. Returns the batch to go on with when there was no
-- budget for all of them.
local function look(id, only)
    local count, suffix = message_head(id)
    if not count or (source == 'f' and redis.call('ZSCORE', tag .. ':x', id)) then
        if source == 'i' then
            reply[#reply + 1] = {id}
        end
        return
    end
    local start, stop = first, math.min(count, first + budget) - 1
    if only then
        start, stop = only, math.min(only, count - 1)
        count = 0
    end
    budget = budget - math.max(stop - start + 1, 0)
    local entries, keys = {}, {tag .. ':m:' .. id}
    for n = start, stop do
        local entry = id .. '/' .. n .. suffix
        if wanted(redis.call('GETRANGE', tag .. ':q:' .. entry, 0, 400)) then
            entries[#entries + 1] = entry
            keys[#keys + 1] = tag .. ':q:' .. entry
        end
    end
    if #entries > 0 or source == 'i' then
        local stored = redis.call('MGET', unpack(keys))
        local leases = #entries > 0 and redis.call('HMGET', tag .. ':t', unpack(entries))
        local item = {id, stored[1], #entries == 0 and letters_of(id, start, stop, suffix) or nil}
        for i = 1, #entries do
            item[3 * i], item[3 * i + 1], item[3 * i + 2] = entries[i], stored[i + 1], leases[i] or ''
        end
        reply[#reply + 1] = item
    end
    return stop + 1 < count and stop + 1
end

local function note(n, position)
    reply[1] = n .. ':' .. position
end

local function walk_set()
    local key, rank = tag .. ':' .. source, 0
    if score then
        rank = rank_after(key, score, from)
        if first > 0 and tonumber(redis.call('ZSCORE', key, from) or 0) == tonumber(score) then
            rank = rank - 1
        else
            first = 0
        end
    end
    local ids = redis.call('ZRANGE', key, rank, rank + most - 1, 'WITHSCORES')
    for i = 1, #ids, 2 do
        local rest = look(ids[i])
        if rest or budget <= 0 or i + 1 == 2 * most then
            note(rest or 0, ids[i + 1] .. ':' .. ids[i])
            reply[2] = (i + 1) / 2
            return
        end
        first = 0
    end
    reply[2] = #ids / 2
end

-- From the end, so that what finishes meanwhile makes us see a message twice and none not at all.
local function walk_finished()
    local position = tonumber(score) or 0
    local items = redis.call('LRANGE', tag .. ':f', -position - most, -position - 1)
    for i = #items, 1, -1 do
        local id = string.match(items[i], ' (.*)$')
        local rest = id and look(id)
        reply[2] = reply[2] + 1
        if rest then
            note(rest, position + #items - i)
            return
        elseif budget <= 0 then
            note(0, position + #items - i + 1)
            return
        end
        first = 0
    end
    if #items == most then
        note(0, position + most)
    end
end

local function walk_ids()
    local position = tonumber(score) or 0
    for i = 9 + position, #ARGV do
        local id, only = string.match(ARGV[i], '^([^/]*)/?(%d*)$')
        local rest = look(id or ARGV[i], tonumber(only))
        reply[2] = reply[2] + 1
        if rest or budget <= 0 or reply[2] >= most then
            position = i - 9 + (rest and 0 or 1)
            if rest or i < #ARGV then
                note(rest or 0, position)
            end
            return
        end
        first = 0
    end
end

if source == 'i' then
    walk_ids()
elseif source == 'f' then
    walk_finished()
else
    walk_set()
end
return reply
