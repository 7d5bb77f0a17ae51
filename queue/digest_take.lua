-- Hands out a collection whose window is over, or ends one (digest.h). What is not ended is handed out again.
--
-- KEYS: shard tag. ARGV: hold_ms, or '' and the id of the collection that is sent.
-- Reply: {id, what is said about it, {stored messages}}, or nil when none is due.
local tag = KEYS[1]
if ARGV[1] == '' then
    redis.call('ZREM', tag .. ':jd', ARGV[2])
    return redis.call('UNLINK', tag .. ':j:' .. ARGV[2], tag .. ':ji:' .. ARGV[2])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id = redis.call('ZRANGEBYSCORE', tag .. ':jd', '-inf', now, 'LIMIT', 0, 1)[1]
if not id then
    return false
end
redis.call('ZADD', tag .. ':jd', string.format('%.0f', now + ARGV[1]), id)
return {id, redis.call('HGET', tag .. ':j:' .. id, 'about') or '', redis.call('LRANGE', tag .. ':ji:' .. id, 0, -1)}
