-- Puts a message into the collection of its window (digest.h), which it may begin.
--
-- KEYS: shard tag, the window. ARGV: its id, window_ms, what is said about a collection, stored message,
--   most messages and most bytes of a collection, bytes of the message.
-- Reply: {id of the collection, messages in it}.
local tag, window = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local w = redis.call('HMGET', window, 'j', 'd')
local id = w[1]
-- Its score is when it is due until it is handed out, whatever the clock says: nothing is added to it then.
if not id or tonumber(w[2]) <= now or tonumber(redis.call('ZSCORE', tag .. ':jd', id)) ~= tonumber(w[2]) then
    id = ARGV[1]
    local due = string.format('%.0f', now + ARGV[2])
    redis.call('HSET', window, 'j', id, 'd', due)
    redis.call('PEXPIRE', window, ARGV[2])
    redis.call('HSET', tag .. ':j:' .. id, 'about', ARGV[3])
    redis.call('ZADD', tag .. ':jd', due, id)
end
local count = redis.call('RPUSH', tag .. ':ji:' .. id, ARGV[4])
local bytes = redis.call('HINCRBY', tag .. ':j:' .. id, 'bytes', ARGV[7])
if count >= tonumber(ARGV[5]) or bytes >= tonumber(ARGV[6]) then
    redis.call('DEL', window)
    redis.call('ZADD', tag .. ':jd', string.format('%.0f', now), id)
end
return {id, count}
