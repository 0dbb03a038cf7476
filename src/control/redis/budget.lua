-- One key's budget, for all nodes: what is asked is decided and charged at once.
--
-- KEYS[1]  a hash: m, mc (minute and calls in it), d, dc (day and calls in it), due (ms; see
--          policy/limit/tokens.rs)
-- ARGV     rpm, rpd, tpm (0 = no limit), waiting, hand_minute, minute, hand_day, day,
--          ahead_minute, ahead_day, tokens, nodes
-- returns  now_us, minute, day, passed, given_minute, given_day, left_minute, left_day, due_ms
local a = {}
for i = 1, #ARGV do a[i] = tonumber(ARGV[i]) end
local rpm, rpd, tpm, waiting = a[1], a[2], a[3], a[4]
local t = redis.call('TIME')
local second = tonumber(t[1])
local now_ms = second * 1000 + math.floor(tonumber(t[2]) / 1000)
local minute, day = math.floor(second / 60), math.floor(second / 86400)
local h = redis.call('HMGET', KEYS[1], 'm', 'mc', 'd', 'dc', 'due')
local mc = tonumber(h[1]) == minute and tonumber(h[2]) or 0
local dc = tonumber(h[3]) == day and tonumber(h[4]) or 0
local due = tonumber(h[5] or 0) or 0

if tpm > 0 and a[11] > 0 then
  due = math.max(due, now_ms) + math.ceil(a[11] * 60000 / tpm)
  due = math.min(due, now_ms + 60000 + 86400000)
end
local in_debt = tpm > 0 and due - now_ms > 60000

local none = 4294967295
local function left(limit, used)
  if limit == 0 then return none end
  return math.max(0, limit - used)
end
local lm, ld = left(rpm, mc), left(rpd, dc)
local hm = a[6] == minute and a[5] or 0
local hd = a[8] == day and a[7] or 0
local passed = 0
if not in_debt then
  passed = math.min(waiting, rpm == 0 and waiting or hm + lm, rpd == 0 and waiting or hd + ld)
end
-- Less ahead of need the nearer the end is: what lies idle at one node is missed at another.
local function give(limit, hand, rest, ahead)
  if limit == 0 then return 0 end
  local given = math.max(0, passed - hand)
  return given + math.min(ahead, math.floor((rest - given) / (4 * a[12])))
end
local gm, gd = give(rpm, hm, lm, a[9]), give(rpd, hd, ld, a[10])
redis.call('HSET', KEYS[1], 'm', minute, 'mc', mc + gm, 'd', day, 'dc', dc + gd, 'due', due)
redis.call('PEXPIRE', KEYS[1], 172800000)
return { second * 1000000 + tonumber(t[2]), minute, day, passed, gm, gd,
  rpm == 0 and none or lm - gm, rpd == 0 and none or ld - gd, due }
