-- Closes a gate until a time, or opens it with 0. A later time wins.
--
-- KEYS: shard tag. ARGV: gate, until_ms, reason. Reply: 1 when something changed.
local tag, gate, till = KEYS[1], ARGV[1], tonumber(ARGV[2])
if till == 0 then
    redis.call('HDEL', tag .. ':g', '?' .. gate)
    return redis.call('HDEL', tag .. ':g', gate)
end
if till <= tonumber(redis.call('HGET', tag .. ':g', gate) or 0) then
    return 0
end
redis.call('HSET', tag .. ':g', gate, ARGV[2], '?' .. gate, ARGV[3])
return 1
