-- The ends of batches and, with the last one, of messages: collected by batch_ended(), written by write_ends().
--
-- A batch is dead when recipients of it failed, expired or are unknown. A message with dead batches (counted in
-- :u) stands in :z by the time the last one ended, and keeps its body for a replay. What a message takes of
-- the history's budget is 600, and 200 and its stored record for each batch that ended.
local HISTORY_MESSAGE, HISTORY_BATCH = 600, 200
local gone, closed, finished = {}, {}, {}
local freed, kept, history = 0, 0, 0

local function message_ended(id, charge, dead)
    closed[#closed + 1] = id
    finished[#finished + 1] = string.format('%.0f', now) .. ' ' .. id
    freed = freed + charge
    history = history + HISTORY_MESSAGE
    if dead then
        kept = kept + charge
    else
        gone[#gone + 1] = tag .. ':b:' .. id
    end
end

local function batch_ended(id, single, charge, stored_bytes, dead)
    history = history + HISTORY_BATCH + stored_bytes
    if dead then
        redis.call('HINCRBY', tag .. ':u', id, 1)
        redis.call('ZADD', tag .. ':z', now, id)
    end
    if not single then
        if redis.call('DECR', tag .. ':o:' .. id) > 0 then
            return
        end
        gone[#gone + 1] = tag .. ':o:' .. id
        if not dead and redis.call('ZSCORE', tag .. ':z', id) then
            dead = true
            redis.call('ZADD', tag .. ':z', now, id)
        end
    end
    message_ended(id, charge, dead)
end

local function write_ends()
    if #closed > 0 then
        redis.call('ZREM', tag .. ':x', unpack(closed))
        redis.call('RPUSH', tag .. ':f', unpack(finished))
    end
    if freed ~= 0 then
        redis.call('HINCRBY', tag .. ':k', 'bytes', -freed) -- of 0 it would be told "-0", which it refuses
    end
    if #gone > 0 then
        redis.call('UNLINK', unpack(gone))
    end
    if kept ~= 0 then
        redis.call('HINCRBY', tag .. ':k', 'dead', kept)
    end
    if history ~= 0 then
        redis.call('HINCRBY', tag .. ':k', 'history', history)
    end
end
