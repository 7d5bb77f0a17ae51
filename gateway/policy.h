/* Who may send what: clients, networks, credentials, allowed senders and recipients.
 *
 * Must not know: protocols, Redis, routing. Pure but for password hashing, which runs on the loop's
 * thread pool and is cached. Thread: a policy is an immutable snapshot, shared by all ingress
 * threads; a policy_cache belongs to one loop.
 *
 * An unknown user costs as much time as a wrong password (a hash is computed all the same). */
#ifndef HEAVE_GATEWAY_POLICY_H
#define HEAVE_GATEWAY_POLICY_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum policy_recipients {
    POLICY_RECIPIENTS_ANY,
    POLICY_RECIPIENTS_INTERNAL,
    POLICY_RECIPIENTS_EXTERNAL,
};

enum policy_dedup_mode {
    POLICY_DEDUP_OFF,
    POLICY_DEDUP_SIMPLE,   /* one in a window */
    POLICY_DEDUP_THROTTLE, /* `limit` in a window */
    POLICY_DEDUP_DIGEST,   /* all of a window in one mail when it ends */
};
/* `clients.*.dedup`: what becomes of repeats, see gateway/intake_dedup.h. */
struct policy_dedup_conf {
    enum policy_dedup_mode mode;
    int64_t window_ms;
    uint32_t limit;
    bool ignore_digits;
};

/* One row of `clients:`. Strings live as long as the policy. */
struct policy_client_conf {
    const char *name;
    const char *user;          /* SMTP AUTH and HTTP Basic; NULL: none */
    const char *password_hash; /* crypt(3) */
    const char *api_key_hash;  /* crypt(3); NULL: none */
    const char *const *networks;
    size_t network_count;
    const char *const *from; /* "*@contoso.com", "scan@contoso.com", "*"; none: any sender */
    size_t from_count;
    const char *lane;     /* NULL: "normal" */
    bool may_choose_lane; /* X-Heave-Lane / "lane" honoured */
    enum policy_recipients recipients;
    uint32_t scopes; /* enum policy_scope */
    struct policy_dedup_conf dedup;
};
enum policy_scope {
    POLICY_SCOPE_SEND = 1u << 0,
    POLICY_SCOPE_READ = 1u << 1,
    POLICY_SCOPE_ADMIN = 1u << 2,
};

struct policy;
/* A client of the snapshot; valid while a reference to the policy is held. */
struct policy_client {
    const struct policy_client_conf *conf;
    size_t index; /* place in `clients:`, or POLICY_INDEX_NONE */
};
/* The index of a client that stands in no configuration: the one an SMTP listener makes for its own
 * networks. */
#define POLICY_INDEX_NONE SIZE_MAX

/* An address block. IPv4 and IPv6 are families apart: "::/0" holds no IPv4 address, and an
 * IPv4-mapped IPv6 address counts as IPv4. */
struct policy_network {
    unsigned char address[16]; /* IPv4 in the first four bytes */
    uint8_t prefix;            /* bits that count: 0..32 or 0..128 */
    bool is_ipv4;
};
/* Reads "10.0.0.0/8", "192.0.2.1", "2001:db8::/32"; bits below the prefix must be zero, for
 * "10.1.2.3/16" may mean two things. Errors: ERR_INVAL with a sentence naming the value. */
MUST_USE int policy_network_parse(const char *text, struct policy_network *out, struct err *err);
/* Whether the block holds `address`, a single address as text ("%scope" is passed over); false for
 * text that is none, such as "unix". */
bool policy_network_holds(const struct policy_network *network, const char *address);

/* `clients` must outlive the policy. Errors: ERR_INVAL (network, pattern, a hash crypt(3) does not
 * know or that is too weak to be one, a user named twice) with a sentence naming client and value.
 */
MUST_USE int policy_new(const struct policy_client_conf *clients, size_t count, struct policy **out,
                        struct err *err);
struct policy *policy_ref(struct policy *policy);
void policy_unref(struct policy **policy);

/* The client whose network holds `address` ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1" counts
 * as IPv4, "unix" never matches); the longest prefix wins, then the order of the file. NULL: none.
 */
const struct policy_client *policy_by_network(const struct policy *policy, const char *address);

/* Whether the client may use this sender: reverse-path or From. An empty reverse-path (bounces) is
 * allowed. Patterns are compared ASCII case-insensitively; '*' stands for any characters, so
 * "*@contoso.com" is one domain and "*.contoso.com" every domain below it; a pattern without '@'
 * and '*' is a domain. */
bool policy_sender_allowed(const struct policy_client *client, struct span address);

/* Checked credentials of the last 10 minutes, keyed by SHA-256 with a random salt, so that a
 * thousand sessions hash once. Failures are remembered for 5 s. Bounded to 1,024 entries. A check
 * that runs already for the same credentials is joined, and at most two checks of a cache run at a
 * time, so that name look-ups still find a thread of the pool. */
struct policy_cache;
struct policy_cache *policy_cache_new(struct loop *loop);
/* Every check begun must have been answered or cancelled. Hashes that still run finish on their
 * own.
 */
void policy_cache_free(struct policy_cache **cache);

/* `client` is NULL when the credentials are wrong. */
typedef void (*policy_auth_cb)(void *ctx, const struct policy_client *client);
/* A check that runs. It is gone once its callback begins; policy_auth_cancel() before `ctx` goes
 * away keeps the callback from running. */
struct policy_auth;
/* Checks user and password. The callback runs later, exactly once, unless cancelled. Password bytes
 * are copied and wiped. */
struct policy_auth *policy_auth_password(struct policy_cache *cache, struct policy *policy,
                                         struct span user, struct span password, policy_auth_cb cb,
                                         void *ctx);
/* Finds the client an API key belongs to. */
struct policy_auth *policy_auth_key(struct policy_cache *cache, struct policy *policy,
                                    struct span key, policy_auth_cb cb, void *ctx);
void policy_auth_cancel(struct policy_auth **auth);
/* The client of an API key that was checked with success a short time ago; NULL: not known without
 * a check. For decisions that come before the check and are no harm when they are wrong. */
const struct policy_client *policy_known_key(struct policy_cache *cache, struct policy *policy,
                                             struct span key);

/* Makes a yescrypt hash of `secret` ("$y$..."). Errors: ERR_IO. */
MUST_USE int policy_hash(struct span secret, char *out, size_t out_bytes);

#endif
