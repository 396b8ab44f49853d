// SPDX-License-Identifier: GPL-2.0-or-later
// The libsodium that comes with libzmq, or the system's: key exchange and authenticated encryption.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace coremesh::link {

/// libsodium cannot be used: not there, or too old. The text says which.
class SodiumError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The few functions of its stable C interface that a wire needs (doc.libsodium.org). Immutable after
/// construction.
class LibSodium {
  public:
    static constexpr size_t kKey = 32;     // crypto_kx_*BYTES and both ciphers' KEYBYTES
    static constexpr size_t kNonce = 12;   // both ciphers' NPUBBYTES
    static constexpr size_t kTag = 16;     // both ciphers' ABYTES
    static constexpr size_t kState = 512;  // crypto_aead_aes256gcm_statebytes()
    static constexpr size_t kAlign = 16;   // of that state

    /// @param path of the library; loaded if it is not yet. Throws SodiumError.
    explicit LibSodium(const std::string& path);

    // All return 0 when they succeed.
    int (*keypair)(uint8_t* public_key, uint8_t* secret_key) = nullptr;
    int (*client_keys)(uint8_t* receive, uint8_t* transmit, const uint8_t* own_public,
                       const uint8_t* own_secret, const uint8_t* peers_public) = nullptr;
    int (*server_keys)(uint8_t* receive, uint8_t* transmit, const uint8_t* own_public,
                       const uint8_t* own_secret, const uint8_t* peers_public) = nullptr;
    int (*hash)(uint8_t* out, size_t out_bytes, const uint8_t* in, unsigned long long in_bytes,
                const uint8_t* key, size_t key_bytes) = nullptr;
    void (*wipe)(void* memory, size_t bytes) = nullptr;

    /// Whether this processor has the instructions for AES-256-GCM; ChaCha20-Poly1305 needs none.
    bool has_aes = false;
    int (*aes_state)(void* state, const uint8_t* key) = nullptr;
    int (*aes_seal)(uint8_t* out, unsigned long long* out_bytes, const uint8_t* in,
                    unsigned long long in_bytes, const uint8_t* ad, unsigned long long ad_bytes,
                    const uint8_t* nsec, const uint8_t* nonce, const void* state) = nullptr;
    int (*aes_open)(uint8_t* out, unsigned long long* out_bytes, uint8_t* nsec, const uint8_t* in,
                    unsigned long long in_bytes, const uint8_t* ad, unsigned long long ad_bytes,
                    const uint8_t* nonce, const void* state) = nullptr;
    int (*chacha_seal)(uint8_t* out, unsigned long long* out_bytes, const uint8_t* in,
                       unsigned long long in_bytes, const uint8_t* ad, unsigned long long ad_bytes,
                       const uint8_t* nsec, const uint8_t* nonce, const uint8_t* key) = nullptr;
    int (*chacha_open)(uint8_t* out, unsigned long long* out_bytes, uint8_t* nsec, const uint8_t* in,
                       unsigned long long in_bytes, const uint8_t* ad, unsigned long long ad_bytes,
                       const uint8_t* nonce, const uint8_t* key) = nullptr;
};

}  // namespace coremesh::link
