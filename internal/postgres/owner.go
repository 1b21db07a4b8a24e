package postgres

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// owner is the user that the server runs as. PostgreSQL refuses to run as root.
type owner struct {
	uid, gid   int
	switchUser bool // this process is root and switches to the user
}

// clusterOwner returns the user that runs the cluster in dir. It is the current
// user, unless that is root. For root it is the owner of an existing cluster,
// else the user postgres, else the user nobody.
func clusterOwner(dir string) (owner, error) {
	self := owner{uid: os.Geteuid(), gid: os.Getegid()}
	existing, exists := fileOwner(dir)
	if self.uid != 0 {
		if exists && existing.uid != self.uid {
			return owner{}, fmt.Errorf("the database folder %s belongs to user id %d, and this process runs as %d: "+
				"run as that user or as root, or choose another --data-dir", dir, existing.uid, self.uid)
		}
		return self, nil
	}
	if exists && existing.uid != 0 {
		existing.switchUser = true
		return existing, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(account.Uid)
		gid, err2 := strconv.Atoi(account.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return owner{uid: uid, gid: gid, switchUser: true}, nil
		}
	}
	return owner{}, fmt.Errorf("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody to run it as: " +
		"start mynah as an ordinary user, or give --database-url")
}

// credential returns the credential of a child that runs as the owner, nil for
// no change.
func (o owner) credential() *syscall.Credential {
	if !o.switchUser {
		return nil
	}
	return &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
}

// makeDir makes a folder that only the owner may enter, or checks an existing
// one. A folder of root is given to the owner. A folder of another user is
// refused, since an attacker may have made it.
func (o owner) makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	if of, ok := fileOwner(dir); ok && o.switchUser && of.uid == 0 {
		if err := os.Lchown(dir, o.uid, o.gid); err != nil {
			return err
		}
	}
	return o.checkDir(dir)
}

// checkDir returns an error unless dir is a real folder that belongs to the
// owner and is closed to everybody else.
func (o owner) checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if of, ok := fileOwner(dir); !ok || of.uid != o.uid {
		return fmt.Errorf("%s does not belong to user id %d", dir, o.uid)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// fileOwner returns who owns the file at path, not following a link.
func fileOwner(path string) (owner, bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return owner{}, false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, false
	}
	return owner{uid: int(stat.Uid), gid: int(stat.Gid)}, true
}
