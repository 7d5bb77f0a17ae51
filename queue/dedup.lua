-- A window in which repeats of a message are not queued again (dedup.h).
--
-- KEYS: shard tag, the window. ARGV: what, owner, limit, window_ms, and for
--   begin: hold_ms; commit: id, how many suppressed ones the message tells of.
-- The hash: e end of the window, n messages let through in it, i the last one's id, s suppressed and not told yet,
--   o owner and h end of the reservation of the one being stored now.
-- Reply: begin: {0, s} pass, {1, s, i} repeat, {2} another is being stored; else 1, or 0 for a wrong owner.
local what, owner, key = ARGV[1], ARGV[2], KEYS[2]
local limit, length = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local w = redis.call('HMGET', key, 'e', 'n', 'i', 's', 'o', 'h')
local ends, count, told = tonumber(w[1] or 0), tonumber(w[2] or 0), tonumber(w[4] or 0)
local holder = w[5] and tonumber(w[6]) > now and w[5] or nil
-- What was suppressed is kept for a day, or two windows, for the message that will tell of it.
local KEEP = math.max(24 * 3600 * 1000, 2 * length)
if ends <= now then
    ends, count = 0, 0
end

if what == 'begin' then
    if count >= limit then
        redis.call('PEXPIRE', key, ends - now + KEEP)
        return {1, redis.call('HINCRBY', key, 's', 1), w[3]}
    end
    if holder and holder ~= owner then
        return {2}
    end
    local hold = tonumber(ARGV[5])
    redis.call('HSET', key, 'o', owner, 'h', string.format('%.0f', now + hold))
    if redis.call('PTTL', key) < hold then
        redis.call('PEXPIRE', key, hold)
    end
    -- Those of the window that is still open are told when it is over.
    return {0, ends > 0 and 0 or told}
end
if holder ~= owner then
    return 0
end
redis.call('HDEL', key, 'o', 'h')
if what == 'give_back' then
    return 1
end
if ends == 0 then
    ends = now + length
end
told = math.max(told - tonumber(ARGV[6]), 0)
redis.call('HSET', key, 'e', string.format('%.0f', ends), 'n', count + 1, 'i', ARGV[5], 's', told)
redis.call('PEXPIRE', key, ends - now + (told > 0 and KEEP or 0))
return 1
