/* Stored bodies: the frames message bodies stand in at rest. Pure: bytes in, bytes out.
 *
 * A body of up to BODY_SMALL_BYTES is stored as one frame, a larger one as pieces: a frame for each
 * BODY_PIECE_BYTES of it, so that neither storing nor reading ever needs it twice in memory.
 *
 *     kind (1)  0xf8  number of the piece (2)  size of the whole body (4)  what the kind says
 *
 * Numbers are big-endian. By kind:
 *
 *     RAW         the bytes
 *     ZSTD        a zstd frame with checksum
 *     SEALED      length (1) and name of the key, nonce (12), ciphertext of the bytes, tag (16)
 *     SEALED_ZSTD the same of a zstd frame
 *
 * Any two kinds differ in two bits, so that no flipped bit makes one of another; and no kind is a
 * byte a header may begin with: what version 0.1 stored has no frame and is told by that. A sealed
 * frame's tag also covers the head and the message's id: pieces cannot be swapped, nor bodies
 * between messages. Each message has a key of its own (base/seal.h).
 *
 * Must not know: Redis, keys' files. Thread: one at a time for a codec. */
#ifndef HEAVE_QUEUE_BODY_H
#define HEAVE_QUEUE_BODY_H

#include "gateway/base/buf.h"
#include "queue/keyring.h"

#include <stdint.h>

#define BODY_SMALL_BYTES ((size_t)64 * 1024)
#define BODY_PIECE_BYTES ((size_t)256 * 1024)
#define BODY_MAX_BYTES ((size_t)1 << 30)

/* Compressor, cipher and their room, used again and again. */
struct body_codec;

/* `keys` may be NULL (nothing is sealed, nothing sealed can be read) and must outlive the codec. */
struct body_codec *body_codec_new(bool compress, const struct keyring *keys);
void body_codec_free(struct body_codec **codec);
/* Gives back what large pieces needed. */
void body_codec_rest(struct body_codec *codec);

/* Which frame of which body. */
struct body_piece {
    struct span id; /* the message's */
    uint32_t index;
    size_t body_bytes; /* of the whole body */
};

/* How many pieces a body above BODY_SMALL_BYTES has, and how many of its bytes are in one. */
size_t body_piece_count(size_t body_bytes);
size_t body_piece_bytes(const struct body_piece *piece);

/* Makes the frame of `first` and `second` together: the whole body, or the piece's bytes. `*out` is
 * lent until the next call. Errors: ERR_NOMEM, ERR_LIMIT (the body is above BODY_MAX_BYTES). */
MUST_USE int body_encode(struct body_codec *codec, const struct body_piece *piece,
                         struct span first, struct span second, struct span *out);

/* The size of the whole body, as a frame says. Errors: ERR_INVAL (this is no frame). */
MUST_USE int body_size(struct span stored, size_t *out_bytes);
/* Whether this is a body stored without a frame, by version 0.1. */
bool body_is_bare(struct span stored);
/* Takes a frame apart into `out`, which has room for all `piece` is said to hold
 * (body_piece_bytes() of a piece, body_size() of a whole body). Errors: ERR_INVAL (damaged, or of
 * another size than `piece` says), ERR_NOTFOUND (no such key), ERR_DENIED (the key does not open
 * it: damaged, another key of that name, or another's frame), ERR_NOMEM. */
MUST_USE int body_decode(struct body_codec *codec, const struct body_piece *piece,
                         struct span stored, char *out);
/* Why, as a sentence for people; names the key that is missing. */
void body_explain(int status, struct span stored, char *out, size_t out_bytes);

#endif
