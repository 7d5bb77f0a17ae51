-- An idempotency key's record: reserved while its submission is being taken, then (by enqueue.lua, or by finish here) the
-- answer.
--
-- KEYS: shard tag, the key's record. ARGV: what, owner (token of the reservation), and for
--   begin: fingerprint, hold_ms, '1' when a replay must be followed by a WAIT (it then writes something to wait for);
--   finish: fingerprint, ttl_ms, id, answer.
-- Reply: begin: {0} reserved, {1, id, answer} known, {2} known with other content, {3, ms it is held at most}
--   somebody else is at it; finish, give_back: 1 done, 0 it was not this owner's any more.
local what, owner, key = ARGV[1], ARGV[2], KEYS[2]
local record = redis.call('HMGET', key, 'f', 'i', 'a', 't')
local id, holder = record[2], record[4]
if what ~= 'begin' then
    if id or holder ~= owner then
        return 0
    end
    if what == 'give_back' then
        return redis.call('UNLINK', key)
    end
    redis.call('HSET', key, 'f', ARGV[3], 'i', ARGV[5], 'a', ARGV[6])
    return redis.call('PEXPIRE', key, ARGV[4])
end
if id then
    if record[1] ~= ARGV[3] then
        return {2}
    end
    if ARGV[5] == '1' then
        redis.call('HINCRBY', key, 'n', 1)
    end
    return {1, id, record[3]}
end
if holder and holder ~= owner then
    return {3, redis.call('PTTL', key)}
end
redis.call('HSET', key, 't', owner)
redis.call('PEXPIRE', key, ARGV[4])
return {0}
