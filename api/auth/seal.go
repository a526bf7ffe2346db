package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
)

// sealer makes the cipher of one secret, for texts that only the cluster is to read.
func sealer(seed []byte) (cipher.AEAD, error) {
	key := sha256.Sum256(append([]byte("seal\x00"), seed...))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Seal gives a client something to hand back that says nothing to it.
func (k *Keys) Seal(text string) string {
	return base64.RawURLEncoding.EncodeToString(k.seals[0].Seal(nil, nil, []byte(text), nil))
}

// Unseal reads what a node of the cluster has sealed.
func (k *Keys) Unseal(sealed string) (string, bool) {
	data, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", false
	}
	for _, s := range k.seals {
		if text, err := s.Open(nil, nil, data, nil); err == nil {
			return string(text), true
		}
	}
	return "", false
}
