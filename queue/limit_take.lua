-- Takes units of a quota against several sliding windows at once, on account of a share (a lane) or of nobody.
--
-- KEYS: one key per window. ARGV: wanted (negative: given back), share's name or '', its percent, then per window
--   limit, window_ms.
-- Reply: {granted, wait_ms, 1 when nothing was granted only because the share is used up}.
--
-- A window of W ms slides over sub-buckets of ceil(W / 32) ms. What was granted in a sub-bucket counts as
-- long as any part of that sub-bucket lies in the window, so the sum over any W never passes the limit.
-- Fields of a window: sub-bucket -> units of all; 'sub-bucket|share' -> units of the share, a part of those.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wanted, share, percent = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local granted, wait, share_only = wanted, 0, 1
local buckets = {}

-- What a share may have of the `room` units left of `limit`: its own part (`own` is used of it), or, borrowing,
-- all but a tenth; and that only while the quota is not used faster than it flows.
local function allowed(limit, room, own, latest, quarter)
    local part = math.min(room, math.max(math.floor(limit * percent / 100) - own, 0))
    local fast = 2 * room <= limit and (latest >= math.ceil(limit / 32) or quarter >= math.ceil(limit / 4))
    if fast then
        return part, true
    end
    return math.max(part, room - math.floor(limit / 10)), false
end

-- Sums of one window: all, the share's, those of the present sub-bucket and of the last eight; the ends of the
-- sub-buckets that count.
local function read(key, window, size, bucket)
    local all = redis.call('HGETALL', key)
    local sum, own, latest, quarter, old, ends = 0, 0, 0, 0, {}, {}
    for n = 1, #all, 2 do
        local bar = string.find(all[n], '|', 1, true)
        local at = tonumber(bar and string.sub(all[n], 1, bar - 1) or all[n])
        local units = tonumber(all[n + 1])
        if (at + 1) * size <= now - window then
            old[#old + 1] = all[n]
        elseif bar then
            own = own + (string.sub(all[n], bar + 1) == share and units or 0)
        else
            sum = sum + units
            latest = latest + (at == bucket and units or 0)
            quarter = quarter + (at > bucket - 8 and units or 0)
            ends[#ends + 1] = (at + 1) * size
        end
    end
    if #old > 0 then
        redis.call('HDEL', key, unpack(old))
    end
    table.sort(ends)
    return sum, own, latest, quarter, ends
end

for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
    local size = math.ceil(window / 32)
    local bucket = math.floor(now / size)
    buckets[i] = string.format('%.0f', bucket)
    if wanted > 0 then
        local sum, own, latest, quarter, ends = read(key, window, size, bucket)
        local room = math.max(limit - sum, 0)
        local may, fast = room, false
        if percent < 100 then
            may, fast = allowed(limit, room, own, latest, quarter)
        end
        if may <= 0 then
            may = 0
            -- Too fast: the next sub-bucket may do. Otherwise the oldest one has to leave the window first.
            wait = math.max(wait, fast and (bucket + 1) * size - now or (ends[1] or now) + window - now)
        end
        if room == 0 then
            share_only = 0
        end
        granted = math.min(granted, may)
    end
end
if granted == 0 then
    return {0, math.max(wait, 1), share_only}
end
local function count(key, field)
    if redis.call('HINCRBY', key, field, granted) < 0 then
        -- More was given back than this sub-bucket granted: never turns into credit.
        redis.call('HDEL', key, field)
    end
end
for i, key in ipairs(KEYS) do
    local window = tonumber(ARGV[2 * i + 3])
    count(key, buckets[i])
    if share ~= '' then
        count(key, buckets[i] .. '|' .. share)
    end
    redis.call('PEXPIRE', key, window + math.ceil(window / 32) + 1000)
end
return {math.max(granted, 0), 0, 0}
