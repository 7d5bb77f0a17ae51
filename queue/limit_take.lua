-- Takes units of a quota against several sliding windows at once.
--
-- KEYS: one key per window. ARGV: wanted (negative: given back), then per window limit, window_ms.
-- Reply: {granted, wait_ms}.
--
-- A window of W ms slides over sub-buckets of ceil(W / 32) ms. What was granted in a sub-bucket counts as
-- long as any part of that sub-bucket lies in the window, so the sum over any W never passes the limit.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wanted = tonumber(ARGV[1])
local granted, wait = wanted, 0
local buckets = {}
for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    local size = math.ceil(window / 32)
    buckets[i] = string.format('%.0f', math.floor(now / size))
    if wanted > 0 then
        local all = redis.call('HGETALL', key)
        local sum, old, ends = 0, {}, {}
        for n = 1, #all, 2 do
            local bucket_end = (all[n] + 1) * size
            if bucket_end > now - window then
                sum = sum + all[n + 1]
                ends[#ends + 1] = bucket_end
            else
                old[#old + 1] = all[n]
            end
        end
        if #old > 0 then
            redis.call('HDEL', key, unpack(old))
        end
        local room = math.max(limit - sum, 0)
        if room == 0 then
            table.sort(ends)
            wait = math.max(wait, (ends[1] or now) + window - now)
        end
        granted = math.min(granted, room)
    end
end
if granted == 0 then
    return {0, math.max(wait, 1)}
end
for i, key in ipairs(KEYS) do
    local window = tonumber(ARGV[2 * i + 1])
    local left = redis.call('HINCRBY', key, buckets[i], granted)
    if left < 0 then
        -- More was given back than this sub-bucket granted: never turns into credit.
        redis.call('HDEL', key, buckets[i])
    end
    redis.call('PEXPIRE', key, window + math.ceil(window / 32) + 1000)
end
return {math.max(granted, 0), 0}
