-- Opens the list a large body's pieces go to, so that it cannot be there without an expiry.
--
-- KEYS: shard tag. ARGV: id, expiry ms, bytes of the whole body (for people; nothing reads it).
local key = KEYS[1] .. ':b:' .. ARGV[1]
local length = redis.call('RPUSH', key, ARGV[3])
redis.call('PEXPIRE', key, ARGV[2])
return length
